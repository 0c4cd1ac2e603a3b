// Past outputs of all scopes, in one ring of slots.
//
// Owns: which slots belong to which document, and who goes when there is no room: the oldest,
// unless it was drawn from since it was last passed; then it is written again as the newest (clock's
// second chance), as far as a budget goes. A document equal to a stored one is counted, not stored.
//
// Invariant: a document's slots are contiguous; documents_ holds the live ones in the ring's order;
// find() returns only places in documents of the scope asked for, however buckets collide.
//
// Mirrors past_outputs.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ngram_chains.hpp"

namespace quickmatch::suffix {

constexpr std::uint32_t kMaxTimes = 255;
constexpr std::uint32_t kDrawnMatch = 4;      // a shorter match is no sign that a document is of use
constexpr std::size_t kSecondChances = 4;     // tokens written again for each new one, at most
constexpr std::size_t kMinDocument = 2;       // one token says nothing about what follows

struct Scope {
    std::uint64_t seed;
};

class PastOutputs {
  public:
    explicit PastOutputs(std::size_t max_tokens) : max_tokens_(max_tokens), chains_(max_tokens) {}

    std::size_t num_tokens() const { return num_tokens_; }
    const Token* tokens() const { return chains_.tokens(); }

    std::size_t num_bytes() const {
        return chains_.num_bytes() + documents_.size() * (sizeof(Document) + kDigestBytes);
    }

    void remember(const std::shared_ptr<Scope>& scope, const Token* tokens, std::size_t length) {
        if (length > max_tokens_) {  // its end is what later outputs go on from
            tokens += length - max_tokens_;
            length = max_tokens_;
        }
        if (length < kMinDocument) return;
        const std::uint64_t digest = digest_of(scope->seed, tokens, length);
        if (count_again(digest, scope.get(), tokens, length)) return;
        std::vector<Pending> pending;
        pending.emplace_back(Document{scope, {0, 0, 1}, digest, false}, tokens, tokens + length);
        std::size_t budget = kSecondChances * length;
        for (std::size_t i = 0; i < pending.size(); ++i) {
            make_room(pending[i].tokens.size(), budget, pending);
            write(std::move(pending[i].document), pending[i].tokens);
        }
    }

    void find(const Scope* scope, const Token* context_end, std::uint32_t context_length,
              std::vector<Occurrence>& out) {
        static constexpr Owner kHidden{0, 0, 0};
        auto owner_of = [&](Slot slot, Slot previous) -> const Owner* {
            const std::uint32_t age = chains_.mark(slot) - base_;
            const std::uint32_t age_before = chains_.mark(previous) - base_;
            // Chains lead to older places; one that does not has been overwritten.
            if (age >= documents_.size() || age > age_before) return nullptr;
            if (age == age_before && slot > previous) return nullptr;
            const Document& document = documents_[age];
            return document.scope.get() == scope ? &document.owner : &kHidden;
        };
        chains_.find(context_end, context_length, scope->seed, owner_of, out);
        if (!out.empty() && out.front().length >= kDrawnMatch) {
            documents_[chains_.mark(out.front().next - 1) - base_].was_drawn = true;
        }
    }

  private:
    struct Document {
        std::shared_ptr<Scope> scope;
        Owner owner;
        std::uint64_t digest;
        bool was_drawn;  // since it was written
    };

    struct Pending {
        Pending(Document document, const Token* begin, const Token* end)
            : document(std::move(document)), tokens(begin, end) {}
        Document document;
        std::vector<Token> tokens;
    };

    static constexpr std::size_t kDigestBytes = 32;  // of a map's entry, about

    static std::uint64_t digest_of(std::uint64_t seed, const Token* tokens, std::size_t length) {
        std::uint64_t hash = seed ^ length;
        for (std::size_t i = 0; i < length; ++i) {
            hash = (hash ^ tokens[i]) * kMultiplier;
            hash ^= hash >> 32;
        }
        return hash;
    }

    bool count_again(std::uint64_t digest, const Scope* scope, const Token* tokens,
                     std::size_t length) {
        const auto known = by_digest_.find(digest);
        if (known == by_digest_.end()) return false;
        Document& document = documents_[known->second - base_];
        const Owner& owner = document.owner;
        if (document.scope.get() != scope || owner.end - owner.begin != length ||
            !std::equal(tokens, tokens + length, chains_.tokens() + owner.begin)) {
            return false;
        }
        document.owner.times = std::min(owner.times + 1, kMaxTimes);
        document.was_drawn = true;
        return true;
    }

    // Drop the oldest until `length` slots are free at the cursor.
    void make_room(std::size_t length, std::size_t& budget, std::vector<Pending>& pending) {
        while (!documents_.empty()) {
            const Slot oldest = documents_.front().owner.begin;
            if (cursor_ > oldest) {
                if (max_tokens_ - cursor_ >= length) return;
                cursor_ = 0;
            } else {
                if (oldest - cursor_ >= length) return;
                drop_oldest(budget, pending);
            }
        }
        cursor_ = 0;
    }

    void drop_oldest(std::size_t& budget, std::vector<Pending>& pending) {
        Document document = std::move(documents_.front());
        documents_.pop_front();
        const std::uint32_t ordinal = base_++;
        const Owner owner = document.owner;
        const std::size_t length = owner.end - owner.begin;
        const auto known = by_digest_.find(document.digest);
        if (known != by_digest_.end() && known->second == ordinal) by_digest_.erase(known);
        num_tokens_ -= length;
        if (document.was_drawn && length <= budget) {
            budget -= length;
            const Token* tokens = chains_.tokens();
            pending.emplace_back(Document{std::move(document.scope), owner, document.digest, false},
                                 tokens + owner.begin, tokens + owner.end);
        }
    }

    void write(Document document, const std::vector<Token>& tokens) {
        const std::uint32_t ordinal = base_ + static_cast<std::uint32_t>(documents_.size());
        const Slot begin = cursor_;
        const std::uint64_t seed = document.scope->seed;
        for (const Token token : tokens) {
            chains_.put(cursor_, token, ordinal);
            if (cursor_ > begin) chains_.index(cursor_ - 1, begin, seed);
            ++cursor_;
        }
        document.owner.begin = begin;
        document.owner.end = cursor_;
        by_digest_.emplace(document.digest, ordinal);
        documents_.push_back(std::move(document));
        num_tokens_ += tokens.size();
    }

    std::size_t max_tokens_;
    std::size_t num_tokens_ = 0;
    Slot cursor_ = 0;
    std::uint32_t base_ = 0;              // ordinal of documents_.front()
    std::deque<Document> documents_;      // oldest first
    std::unordered_map<std::uint64_t, std::uint32_t> by_digest_;  // to an ordinal
    NgramChains chains_;
};

}  // namespace quickmatch::suffix
