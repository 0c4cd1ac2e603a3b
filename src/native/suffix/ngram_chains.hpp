// Where the n-grams that end a context occurred before: hash chains, newest first (LZ77's).
//
// Owns: token slots, and for each order n a link from a slot to the slot before it whose last n
// tokens fell into the same bucket. Knows neither sequences nor documents: who owns a slot, and
// whether a link still means anything, the caller says. A bucket may hold other n-grams too, so
// every look is verified token by token; nothing is ever removed from a chain, overwriting does it.
//
// Mirrors ngram_chains.py, bucket for bucket.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace quickmatch::suffix {

using Token = std::uint32_t;
using Slot = std::uint32_t;

constexpr std::array<std::uint32_t, 5> kOrders{1, 2, 4, 10, 24};
constexpr std::uint32_t kMaxMatch = 63;     // longer matches count as this long
constexpr std::uint32_t kMaxLooks = 32;     // slots looked at in one chain
constexpr std::size_t kMaxOccurrences = 32;  // that a draft is made of
constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
constexpr std::uint32_t kMinBucketBits = 8;
constexpr std::size_t kSlotsPerBucket = 4;  // more buckets find no more; measured: docs/lab-notes.md

// What a slot belongs to: slots [begin, end) of a text that was seen `times` times.
struct Owner {
    Slot begin;
    Slot end;
    std::uint32_t times;
};

// The context occurred before: its last `length` tokens end just before slot `next`.
struct Occurrence {
    Slot next;
    Slot end;
    std::uint32_t length;
    std::uint32_t times;
};

using Buckets = std::array<std::uint32_t, kOrders.size()>;

class NgramChains {
  public:
    explicit NgramChains(std::size_t max_slots) {
        std::uint32_t bits = kMinBucketBits;
        while ((kSlotsPerBucket << bits) < max_slots) ++bits;
        shift_ = 64 - bits;
        max_slots_ = kSlotsPerBucket << bits;
        for (auto& heads : heads_) heads.assign(std::size_t{1} << bits, 0);
        // Address space, not memory: pages come as they are written, and nothing moves later.
        tokens_.reserve(max_slots);
        links_.reserve(max_slots);
    }

    std::size_t max_slots() const { return max_slots_; }  // beyond that chains get long
    std::size_t num_slots() const { return tokens_.size(); }
    const Token* tokens() const { return tokens_.data(); }

    std::size_t num_bytes() const {
        return tokens_.size() * (sizeof(Token) + sizeof(Links)) +
               heads_.size() * heads_[0].size() * sizeof(Slot);
    }

    // Write a token and the mark of who owns it; `slot` may be the first beyond those written.
    void put(Slot slot, Token token, std::uint32_t mark) {
        if (slot == tokens_.size()) {
            tokens_.push_back(token);
            links_.emplace_back();
        }
        tokens_[slot] = token;
        links_[slot].mark = mark;
    }

    std::uint32_t mark(Slot slot) const { return links_[slot].mark; }

    // Make the n-grams that end at `slot` findable. Done once its continuation is known.
    void index(Slot slot, Slot begin, std::uint64_t seed) {
        const std::uint32_t available = slot - begin + 1;
        const Buckets buckets = buckets_of(&tokens_[slot] + 1, available, seed);
        for (std::size_t i = 0; i < kOrders.size(); ++i) {
            links_[slot].before[i] = 0;
            if (kOrders[i] > available) continue;
            Slot& head = heads_[i][buckets[i]];
            // The head may be what this very slot held before it was overwritten.
            if (head != slot + 1) links_[slot].before[i] = head;
            head = slot + 1;
        }
    }

    // Append to `out` where the context's last tokens occurred, longest match first, then newest.
    // context: its last tokens, ending at `context_end`. owner_of(slot, previous): the owner of a
    // slot that was reached from `previous` (equal to it at a chain's head), null if the slot has
    // been overwritten or dropped since, 0 times if the context's owner may not see it.
    template <typename OwnerOf>
    void find(const Token* context_end, std::uint32_t context_length, std::uint64_t seed,
              OwnerOf&& owner_of, std::vector<Occurrence>& out) const {
        const Buckets buckets = buckets_of(context_end, context_length, seed);
        std::uint32_t limit = kMaxMatch;
        for (std::size_t i = kOrders.size(); i-- > 0 && out.size() < kMaxOccurrences;) {
            if (kOrders[i] > context_length) continue;
            const std::size_t first = out.size();
            Slot entry = heads_[i][buckets[i]];
            Slot previous = entry - 1;
            for (std::uint32_t looks = 0; entry && looks < kMaxLooks; ++looks) {
                const Slot slot = entry - 1;
                const Owner* owner = owner_of(slot, previous);
                if (!owner) break;
                previous = slot;
                entry = links_[slot].before[i];
                const std::uint32_t length =
                    owner->times ? match(slot, owner->begin, context_end, context_length) : 0;
                // Longer matches were found in the chain of the next order.
                if (length < kOrders[i] || length > limit) continue;
                out.push_back({slot + 1, owner->end, length, owner->times});
                if (out.size() == kMaxOccurrences) break;
            }
            sort_by_length(out, first);
            limit = kOrders[i] - 1;
        }
    }

  private:
    // Longest first, equals as they were; so few are in order soonest by insertion.
    static void sort_by_length(std::vector<Occurrence>& out, std::size_t first) {
        for (std::size_t i = first + 1; i < out.size(); ++i) {
            const Occurrence one = out[i];
            std::size_t at = i;
            for (; at > first && out[at - 1].length < one.length; --at) out[at] = out[at - 1];
            out[at] = one;
        }
    }

    Buckets buckets_of(const Token* end, std::uint32_t available, std::uint64_t seed) const {
        Buckets buckets{};
        std::uint64_t hash = seed;
        std::uint32_t taken = 0;
        for (std::size_t i = 0; i < kOrders.size() && kOrders[i] <= available; ++i) {
            for (; taken < kOrders[i]; ++taken) hash = (hash ^ *(end - taken - 1)) * kMultiplier;
            buckets[i] = static_cast<std::uint32_t>(((hash ^ taken) * kMultiplier) >> shift_);
        }
        return buckets;
    }

    std::uint32_t match(Slot slot, Slot begin, const Token* context_end,
                        std::uint32_t context_length) const {
        const std::uint32_t most = std::min({kMaxMatch, context_length, slot - begin + 1});
        const Token* here = &tokens_[slot];
        std::uint32_t length = 0;
        while (length < most && *(here - length) == *(context_end - 1 - length)) ++length;
        return length;
    }

    struct Links {  // what a look reads of a slot lies together
        std::uint32_t mark = 0;
        std::array<Slot, kOrders.size()> before{};  // for each order: a slot + 1, 0: none
    };

    std::uint32_t shift_;
    std::size_t max_slots_;
    std::array<std::vector<Slot>, kOrders.size()> heads_;  // of each bucket: a slot + 1, 0: none
    std::vector<Token> tokens_;
    std::vector<Links> links_;
};

}  // namespace quickmatch::suffix
