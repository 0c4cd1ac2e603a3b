// Keys and values of one layer, by slot, laid out as attention reads them.
//
// Sixteen slots are a chunk. A key head's chunk of keys lies dimension first: dword (pair of
// dimensions, slot), so that one product scores sixteen tokens. Its chunk of values lies slot first,
// in pairs: dword (pair of slots, dimension), so that one product adds up two tokens. Chunks of a
// block are neighbours, so that a block's size may be any multiple of 16.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "memory.hpp"
#include "rows.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kChunk = 16;    // slots
constexpr std::size_t kMostDims = 512;  // of a head
constexpr std::size_t kLine = 64;    // bytes of the cache's unit: one pair of a chunk's keys
constexpr std::size_t kAbreast = kHas32Registers ? 4 : 2;  // chunks scored at a time: sums that do not wait for each other

// Chunks first .. last of a sequence, of which `high` tokens are seen; it goes on to chunk `end`.
struct Chunks {
    const std::uint32_t* chunks;
    std::size_t first, last, end, high;

    std::size_t num_tokens(std::size_t c) const { return std::min(kChunk, high - c * kChunk); }
    std::uint32_t ahead(std::size_t c) const { return chunks[std::min(c + kAbreast, end - 1)]; }
};

// One token's values, and what they weigh.
struct Token {
    std::size_t chunk, lane;
    Operand weight;
};

// Some dimensions' sums of several queries, whose rows are so far apart.
template <int kQueries, int kParts>
QM_INLINE void load_sums(F16 (&sums)[kQueries][kParts], const float* from, std::size_t row_size) {
    QM_UNROLL
    for (int q = 0; q < kQueries; ++q) {
        QM_UNROLL
        for (int d = 0; d < kParts; ++d) sums[q][d] = load(from + q * row_size + d * 16);
    }
}

template <int kQueries, int kParts>
QM_INLINE void store_sums(const F16 (&sums)[kQueries][kParts], float* to, std::size_t row_size) {
    QM_UNROLL
    for (int q = 0; q < kQueries; ++q) {
        QM_UNROLL
        for (int d = 0; d < kParts; ++d) store(to + q * row_size + d * 16, sums[q][d]);
    }
}

class PagedKV {
  public:
    struct Query {
        const Operand* from;
    };

    PagedKV(std::size_t num_slots, std::size_t num_heads, std::size_t head_dim)
        : num_heads_(num_heads),
          head_dim_(head_dim),
          keys_(num_slots * num_heads * head_dim),
          values_(num_slots * num_heads * head_dim) {}

    const std::uint32_t* keys(std::size_t chunk, std::size_t head) const {
        return reinterpret_cast<const std::uint32_t*>(keys_.data() + at(chunk, head));
    }
    const Bf16* values(std::size_t chunk, std::size_t head) const {
        return values_.data() + at(chunk, head);
    }

    // key, value: [head_dim]
    void write(std::size_t slot, std::size_t head, const Bf16* key, const Bf16* value) {
        write_key(slot, head, key);
        write_value(slot, head, value);
    }
    void write_key(std::size_t slot, std::size_t head, const Bf16* key) {
        Bf16* keys = keys_.data() + at(slot / kChunk, head) + 2 * (slot % kChunk);
        for (std::size_t d = 0; d < head_dim_; d += 2) {
            std::memcpy(keys + d * kChunk, key + d, 2 * sizeof(Bf16));
        }
    }
    // Of a pair of slots only one's numbers are touched.
    QM_KERNEL void write_value(std::size_t slot, std::size_t head, const Bf16* value) {
        const bool is_second = slot % 2 == 1;
        const Mask32 own = is_second ? 0xAAAAAAAA : 0x55555555;
        Bf16* pairs = values_.data() + at(slot / kChunk, head) + slot % kChunk / 2 * 2 * head_dim_;
        for (std::size_t d = 0; d < head_dim_; d += 16) {
            const I16 wide = widen_u16(value + d);
            store_words(pairs + 2 * d, own, is_second ? left32<16>(wide) : wide);
        }
    }

    // What is stored of a token, to be stored elsewhere: two rows of a head's numbers.
    std::size_t saved_size() const { return 2 * head_dim_ * sizeof(Bf16); }
    void save(std::size_t slot, std::size_t head, char* to) const {
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
        const Bf16* keys = keys_.data() + base + 2 * lane;
        Bf16* key = reinterpret_cast<Bf16*>(to);
        for (std::size_t d = 0; d < head_dim_; d += 2) {
            std::memcpy(key + d, keys + d * kChunk, 2 * sizeof(Bf16));
        }
        const Bf16* values = values_.data() + base + lane / 2 * 2 * head_dim_ + lane % 2;
        for (std::size_t d = 0; d < head_dim_; ++d) key[head_dim_ + d] = values[2 * d];
    }
    void restore(std::size_t slot, std::size_t head, const char* from) {
        const Bf16* key = reinterpret_cast<const Bf16*>(from);
        write(slot, head, key, key + head_dim_);
    }

    QM_KERNEL static void key_of(const char* saved, std::size_t head_dim, float* to) {
        convert(reinterpret_cast<const Bf16*>(saved), head_dim, to);
    }

    // ---- attention: see attention.hpp

    void prepare(const Operand* from, Query& to) const { to.from = from; }

    // Products of kAbreast chunks' keys with the queries. ahead: what is read next, as long as they.
    template <int kQueries>
    QM_INLINE void score(std::size_t head, const std::size_t* chunks, const char* const* ahead,
                                const Query* queries, F16 (&sums)[kAbreast][kQueries]) const {
        const std::uint32_t* own[kAbreast];
        QM_UNROLL
        for (std::size_t i = 0; i < kAbreast; ++i) {
            own[i] = keys(chunks[i], head);
            QM_UNROLL
            for (int q = 0; q < kQueries; ++q) sums[i][q] = none_f();
        }
        for (std::size_t p = 0; p < head_dim_ / 2; ++p) {
            QM_UNROLL
            for (std::size_t i = 0; i < kAbreast; ++i) {
                _mm_prefetch(ahead[i] + p * kLine, _MM_HINT_T0);
                const auto key = as_pairs(load_i(own[i] + p * kChunk));
                QM_UNROLL
                for (int q = 0; q < kQueries; ++q) {
                    sums[i][q] = dot(sums[i][q], key, pair_of(queries[q].from + 2 * p));
                }
            }
        }
    }

    // Add the values of some chunks, times their weights, to sums [queries, head_dim]: kParts times
    // sixteen dimensions of it, from `offset` on. weights: of the first chunk; rows so far apart.
    template <int kQueries, int kParts>
    QM_KERNEL void add_values(std::size_t head, const Chunks& some, std::size_t offset, const Operand* weights,
                              std::size_t row_size, float* to) const {
        F16 sums[kQueries][kParts];
        load_sums(sums, to, head_dim_);
        for (std::size_t c = some.first; c < some.last; ++c, weights += kChunk) {
            const Bf16* own = values(some.chunks[c], head) + 2 * offset;
            const Bf16* ahead = values(some.ahead(c), head) + 2 * offset;
            const std::size_t count = some.num_tokens(c);
            for (std::size_t token = 0; token + 1 < count; token += 2) {
                const std::size_t at = token * head_dim_;
                add_pair<kQueries, kParts>(own + at, 0xFFFFFFFF, ahead + at, weights + token, row_size, sums);
            }
            if (count % 2 == 1) {  // behind it lies what may be no number, and is not to be multiplied
                const std::size_t at = (count - 1) * head_dim_;
                add_pair<kQueries, kParts>(own + at, 0x55555555, ahead + at, weights + count - 1, row_size, sums);
            }
        }
        store_sums(sums, to, head_dim_);
    }

    // The same for two tokens that stand side by side in the text and lie anywhere.
    QM_KERNEL void add_two(std::size_t head, const Token& first, const Token& second, float* to) const {
        const Operand weights[] = {first.weight, second.weight};
        const B32 both = pair_of(weights);
        for (std::size_t d = 0; d < head_dim_; d += 16) {
            const I16 high = left32<16>(value16(head, second, d));
            const auto value = as_pairs(bit_or(value16(head, first, d), high));
            store(to + d, dot(load(to + d), value, both));
        }
    }

  private:
    // mask: the numbers that are multiplied. ahead: what is wanted in the cache.
    template <int kQueries, int kParts>
    QM_INLINE static void add_pair(const Bf16* from, Mask32 mask, const Bf16* ahead,
                                          const Operand* weights, std::size_t row_size,
                                          F16 (&sums)[kQueries][kParts]) {
        B32 value[kParts];
        QM_UNROLL
        for (int d = 0; d < kParts; ++d) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + d * 32), _MM_HINT_T0);
            value[d] = as_pairs(load_words(mask, from + d * 32));
        }
        QM_UNROLL
        for (int q = 0; q < kQueries; ++q) {
            const B32 both = pair_of(weights + q * row_size);
            QM_UNROLL
            for (int d = 0; d < kParts; ++d) sums[q][d] = dot(sums[q][d], value[d], both);
        }
    }

    // Sixteen of a token's values, in the low halves of dwords.
    QM_INLINE I16 value16(std::size_t head, const Token& token, std::size_t d) const {
        const Bf16* from = values(token.chunk, head) + 2 * (token.lane / 2 * head_dim_ + d);
        const I16 pairs = load_i(from);
        return token.lane % 2 ? right32<16>(pairs) : bit_and(pairs, all_i32(0xFFFF));
    }

    std::size_t at(std::size_t chunk, std::size_t head) const {
        return (chunk * num_heads_ + head) * kChunk * head_dim_;
    }

    std::size_t num_heads_, head_dim_;
    Memory<Bf16> keys_, values_;
};

}  // namespace quickmatch::QM_ISA
