// The suffix drafter's native half: live sequences, past outputs, drafts from both.
//
// Owns: each live sequence's own tokens, and the scopes' names. Knows nothing of Python; bindings
// are in module.cpp. One thread at a time.
//
// Mirrors suffix_index.py, which says what the methods do.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "continuations.hpp"
#include "ngram_chains.hpp"
#include "past_outputs.hpp"

namespace quickmatch::suffix {

constexpr std::size_t kPromptTail = 8;   // of the prompt, kept in front of a remembered output
constexpr std::size_t kSpareSlots = 256;  // a sequence's room to grow before its first rebuild

struct UnknownSequence : std::out_of_range {
    using std::out_of_range::out_of_range;
};

// The tokens of one sequence, findable by their n-grams.
class LiveText {
  public:
    explicit LiveText(std::size_t num_tokens) : chains_(num_tokens + kSpareSlots) {}

    const NgramChains& chains() const { return chains_; }

    void append(const std::vector<Token>& token_ids) {
        for (const Token token : token_ids) {
            if (chains_.num_slots() == chains_.max_slots()) grow();
            push(chains_, token);
        }
    }

    void find(const Token* context_end, std::uint32_t context_length,
              std::vector<Occurrence>& out) const {
        const Owner owner{0, static_cast<Slot>(chains_.num_slots()), 1};
        chains_.find(context_end, context_length, 0, [&](Slot, Slot) { return &owner; }, out);
    }

  private:
    static void push(NgramChains& chains, Token token) {
        const auto slot = static_cast<Slot>(chains.num_slots());
        chains.put(slot, token, 0);
        if (slot > 0) chains.index(slot - 1, 0, 0);
    }

    void grow() {
        NgramChains larger(2 * chains_.max_slots());
        for (std::size_t i = 0; i < chains_.num_slots(); ++i) push(larger, chains_.tokens()[i]);
        chains_ = std::move(larger);
    }

    NgramChains chains_;
};

class SuffixIndex {
  public:
    SuffixIndex(std::size_t max_tokens, std::uint32_t max_depth, double min_confidence)
        : past_(max_tokens), max_depth_(max_depth), min_confidence_(min_confidence) {}

    void start(std::int64_t id, const std::string& scope, const std::vector<Token>& prompt) {
        if (live_.count(id)) {
            throw std::invalid_argument("sequence " + std::to_string(id) +
                                        " is live already; finish it before it starts again");
        }
        Live live{scope_named(scope), LiveText(prompt.size()), prompt.size()};
        live.text.append(prompt);
        live_.emplace(id, std::move(live));
    }

    void extend(std::int64_t id, const std::vector<Token>& token_ids) {
        live(id).text.append(token_ids);
    }

    void finish(std::int64_t id, bool remember) {
        const Live& done = live(id);
        const NgramChains& chains = done.text.chains();
        if (remember && chains.num_slots() > done.prompt_length) {
            const std::size_t first = done.prompt_length - std::min(done.prompt_length, kPromptTail);
            past_.remember(done.scope, chains.tokens() + first, chains.num_slots() - first);
        }
        live_.erase(id);
    }

    void remember(const std::string& scope, const std::vector<Token>& token_ids) {
        past_.remember(scope_named(scope), token_ids.data(), token_ids.size());
    }

    Tree draft(std::int64_t id, std::size_t max_nodes, const std::vector<Token>& ahead) {
        const Live& drafted = live(id);
        const NgramChains& chains = drafted.text.chains();
        std::size_t size = chains.num_slots();
        const Token* end = chains.tokens() + size;
        if (!ahead.empty()) {
            context_.assign(end - std::min<std::size_t>(size, kMaxMatch), end);
            context_.insert(context_.end(), ahead.begin(), ahead.end());
            size = context_.size();
            end = context_.data() + size;
        }
        const auto length = static_cast<std::uint32_t>(std::min<std::size_t>(size, kMaxMatch));
        continuations_.begin(chains.tokens(), past_.tokens());
        drafted.text.find(end, length, continuations_.occurrences(0));
        past_.find(drafted.scope.get(), end, length, continuations_.occurrences(1));
        return continuations_.grow(max_nodes, max_depth_, min_confidence_);
    }

    std::size_t num_tokens() const { return past_.num_tokens(); }
    std::size_t num_past_bytes() const { return past_.num_bytes(); }

    std::size_t num_live_bytes() const {
        std::size_t bytes = 0;
        for (const auto& [id, live] : live_) bytes += live.text.chains().num_bytes();
        return bytes;
    }

  private:
    struct Live {
        std::shared_ptr<Scope> scope;
        LiveText text;
        std::size_t prompt_length;
    };

    Live& live(std::int64_t id) {
        const auto found = live_.find(id);
        if (found == live_.end()) {
            throw UnknownSequence("sequence " + std::to_string(id) +
                                  " is not live: it was never started, or is finished");
        }
        return found->second;
    }

    // A scope lives as long as a document or a sequence is in it.
    std::shared_ptr<Scope> scope_named(const std::string& name) {
        if (scopes_.size() >= max_names_) drop_dead_names();
        auto& known = scopes_[name];
        auto scope = known.lock();
        if (!scope) {
            scope = std::make_shared<Scope>(Scope{++num_scopes_ * kMultiplier});
            known = scope;
        }
        return scope;
    }

    void drop_dead_names() {
        for (auto it = scopes_.begin(); it != scopes_.end();) {
            it = it->second.expired() ? scopes_.erase(it) : std::next(it);
        }
        max_names_ = std::max(kMinNames, 2 * scopes_.size());
    }

    static constexpr std::size_t kMinNames = 1024;

    PastOutputs past_;
    Continuations continuations_;  // keeps only memory from draft to draft...
    std::vector<Token> context_;   // ...as does this
    std::uint32_t max_depth_;
    double min_confidence_;
    std::uint64_t num_scopes_ = 0;
    std::size_t max_names_ = kMinNames;
    std::unordered_map<std::string, std::weak_ptr<Scope>> scopes_;
    std::unordered_map<std::int64_t, Live> live_;
};

}  // namespace quickmatch::suffix
