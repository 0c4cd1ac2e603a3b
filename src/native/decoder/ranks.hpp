// The first product of an adapter, x · Aᵀ: a few ranks, each summed over many inputs.
//
// Panels of sixteen outputs (weight.hpp) would be half empty here, and an adapter is read from memory
// once a step: so lanes are inputs, and a rank's sum is what its lanes come to in the end. Four ranks
// stand together, 32 inputs of each in turn. A rank's bits are a function of its row and its weights. Held
// in bytes, it is multiplied with rows rounded to words (words.hpp).
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "memory.hpp"
#include "rows.hpp"
#include "simd.hpp"
#include "words.hpp"

namespace quickmatch::QM_ISA {

// What products with weights that are held so are summed in, and what the sum comes to.
QM_INLINE F16 no_sum(const Bf16*) { return none_f(); }
QM_INLINE I16 no_sum(const std::int8_t*) { return none_i(); }
QM_INLINE F16 total_of(F16 sum) { return sum; }
QM_INLINE F16 total_of(I16 sum) { return to_float(sum); }

class Ranks {
  public:
    static constexpr std::size_t kTogether = 4;  // ranks
    static constexpr std::size_t kChunk = 32;    // inputs

    Ranks() = default;
    // from: [count, in] bfloat16, row after row; in is a multiple of 16. scales: null, or where to put each
    // rank's scale: they are held in bytes then. The arena outlives it.
    Ranks(Arena& arena, const Bf16* from, std::size_t count, std::size_t in, float* scales)
        : count_(count), in_(in), holds_bytes_(scales != nullptr), data_(arena.take<char>(size_of_data())) {
        std::vector<std::int8_t> codes(holds_bytes_ ? in : 0);
        for (std::size_t rank = 0; rank < count; ++rank) {
            if (holds_bytes_) {
                scales[rank] = round_to_int8(from + rank * in, in, codes.data()).most / 127;
                pack(rank, codes.data());
            } else {
                pack(rank, from + rank * in);
            }
        }
    }

    std::size_t count() const { return count_; }
    bool is_empty() const { return count_ == 0; }
    std::size_t stride() const { return (count_ + 15) / 16 * 16; }  // numbers that are written of a row
    std::size_t num_bytes() const { return size_of_data(); }
    bool holds_bytes() const { return holds_bytes_; }
    float largest_word() const { return QM_ISA::largest_word((in_ + 15) / 16); }

    // Of rows of x that are `in` wide. to: [num_rows, stride()], 0 behind the last rank.
    void multiply(const Operand* x, const std::size_t* rows, std::size_t num_rows, float* to) const {
        sum_all<Bf16>([&](std::size_t r) { return x + rows[r] * in_; }, num_rows, to);
    }
    // Held in bytes. words: [num_rows, in] and readable for 16 more; sums are yet to be multiplied by
    // the scales and by what the words are.
    void multiply(const std::int16_t* words, std::size_t num_rows, float* to) const {
        sum_all<std::int8_t>([&](std::size_t r) { return words + r * in_; }, num_rows, to);
    }

  private:
    std::size_t num_blocks() const { return (count_ + kTogether - 1) / kTogether; }
    std::size_t num_chunks() const { return (in_ + kChunk - 1) / kChunk; }
    std::size_t size_of_block() const { return num_chunks() * kTogether * kChunk; }
    std::size_t size_of_data() const { return num_blocks() * size_of_block() * (holds_bytes_ ? 1 : sizeof(Bf16)); }

    // As they come, but where bfloat16 is multiplied as float32: there a lane has inputs i and i + 16, so that
    // rows are read as they lie.
    template <typename Number>
    static constexpr std::size_t place_in_chunk(std::size_t i) {
        constexpr bool kIsSplit = std::is_same_v<Number, Bf16> && std::is_same_v<Operand, float>;
        return kIsSplit ? i % 16 * 2 + i / 16 : i;
    }

    template <typename Number>
    void pack(std::size_t rank, const Number* from) const {
        Number* to = static_cast<Number*>(data_) + rank / kTogether * size_of_block() + rank % kTogether * kChunk;
        for (std::size_t start = 0; start < in_; start += kChunk, to += kTogether * kChunk) {
            const std::size_t size = std::min(kChunk, in_ - start);
            for (std::size_t i = 0; i < size; ++i) to[place_in_chunk<Number>(i)] = from[start + i];
        }
    }

    template <typename Number, typename RowOf>
    void sum_all(const RowOf& row_of, std::size_t num_rows, float* to) const {
        const auto* numbers = static_cast<const Number*>(data_);
        for (std::size_t block = 0; block < num_blocks(); ++block) {
            float* own = to + block * kTogether;
            std::size_t r = 0;
            if constexpr (kHas32Registers) {
                for (; r + 4 <= num_rows; r += 4) {
                    const decltype(row_of(r)) four[] = {row_of(r), row_of(r + 1), row_of(r + 2), row_of(r + 3)};
                    sum<4>(numbers, four, own + r * stride());
                }
            }
            for (; r < num_rows; ++r) {
                const decltype(row_of(r)) one[] = {row_of(r)};
                sum<1>(numbers, one, own + r * stride());
            }
            numbers += size_of_block();
        }
        for (std::size_t r = 0; r < num_rows; ++r) std::fill(to + r * stride() + count_, to + (r + 1) * stride(), 0.0f);
    }

    // A row's numbers of one chunk, of which `left` are in the row: 16, 32 or more.
    QM_INLINE static B32 chunk_of(const Operand* x, std::size_t left) {
#ifdef QM_MULTIPLIES_PAIRS
        return as_pairs(load_words(left >= kChunk ? 0xFFFFFFFF : 0xFFFF, x));
#else
        return {load(x), left >= kChunk ? load(x + 16) : none_f()};
#endif
    }
    // Behind the row the weights are 0.
    QM_INLINE static I16 chunk_of(const std::int16_t* words, std::size_t) { return load_i(words); }

    QM_INLINE static F16 add_chunk(F16 sum, const Bf16* weight, const B32& row) {
        return dot(sum, as_pairs(load_i(weight)), row);
    }
    QM_INLINE static I16 add_chunk(I16 sum, const std::int8_t* weight, I16 row) {
        return dot_words(sum, words_of_bytes(weight), row);
    }

    template <int kRows, typename Number, typename Row>
    QM_KERNEL void sum(const Number* weight, const Row* const (&rows)[kRows], float* to) const {
        decltype(no_sum(weight)) sums[kRows][kTogether];
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            QM_UNROLL
            for (std::size_t n = 0; n < kTogether; ++n) sums[r][n] = no_sum(weight);
        }
        for (std::size_t i = 0; i < in_; i += kChunk, weight += kTogether * kChunk) {
            decltype(chunk_of(rows[0], i)) chunks[kRows];
            QM_UNROLL
            for (int r = 0; r < kRows; ++r) chunks[r] = chunk_of(rows[r] + i, in_ - i);
            QM_UNROLL
            for (std::size_t n = 0; n < kTogether; ++n) {
                QM_UNROLL
                for (int r = 0; r < kRows; ++r) sums[r][n] = add_chunk(sums[r][n], weight + n * kChunk, chunks[r]);
            }
        }
        F16 totals[kRows][kTogether];
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            QM_UNROLL
            for (std::size_t n = 0; n < kTogether; ++n) totals[r][n] = total_of(sums[r][n]);
        }
        put_sums_of(totals, to, stride());
    }

    std::size_t count_ = 0, in_ = 0;
    bool holds_bytes_ = false;
    void* data_ = nullptr;
};

}  // namespace quickmatch::QM_ISA
