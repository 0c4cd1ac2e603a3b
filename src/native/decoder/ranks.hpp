// The first product of an adapter, x · Aᵀ: a few ranks, each summed over many inputs.
//
// Panels of sixteen outputs (weight.hpp) would be half empty here, and an adapter is read from memory
// once a step: so lanes are inputs, and a rank's sum is what its lanes come to in the end. Four ranks
// stand together, 32 inputs of each in turn. A rank's bits are a function of its row and its weights.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "memory.hpp"
#include "simd.hpp"

namespace quickmatch::QM_ISA {

class Ranks {
  public:
    static constexpr std::size_t kTogether = 4;  // ranks
    static constexpr std::size_t kChunk = 32;    // inputs

    Ranks() = default;
    // from: [count, in] bfloat16, row after row; in is a multiple of 16. The arena outlives it.
    Ranks(Arena& arena, const Bf16* from, std::size_t count, std::size_t in)
        : count_(count), in_(in), data_(arena.take<Bf16>(num_blocks() * kTogether * num_chunks() * kChunk)) {
        for (std::size_t rank = 0; rank < count; ++rank) {
            Bf16* to = data_ + (rank / kTogether * num_chunks() * kTogether + rank % kTogether) * kChunk;
            for (std::size_t i = 0; i < in; ++i) {
                to[i / kChunk * kTogether * kChunk + place_in_chunk(i % kChunk)] = from[rank * in + i];
            }
        }
    }

    std::size_t count() const { return count_; }
    bool is_empty() const { return count_ == 0; }
    std::size_t padded() const { return num_blocks() * kTogether; }  // sums that are written of a row
    std::size_t num_bytes() const { return num_blocks() * kTogether * num_chunks() * kChunk * sizeof(Bf16); }

    // x: [num_rows, in]; to: [num_rows, stride], of which the first padded() are written.
    void multiply(const Operand* x, std::size_t num_rows, float* to, std::size_t stride) const {
        for (std::size_t block = 0; block < num_blocks(); ++block) {
            const Bf16* weight = data_ + block * kTogether * num_chunks() * kChunk;
            for (std::size_t r = 0; r < num_rows;) {
                const auto run = [&](auto rows) {
                    constexpr int kRows = decltype(rows)::value;
                    sum<kRows>(weight, x + r * in_, to + r * stride + block * kTogether, stride);
                    r += kRows;
                };
                if (kHas32Registers && num_rows - r >= 4) {
                    run(std::integral_constant<int, 4>());
                } else {
                    run(std::integral_constant<int, 1>());
                }
            }
        }
    }

  private:
    std::size_t num_blocks() const { return (count_ + kTogether - 1) / kTogether; }
    std::size_t num_chunks() const { return (in_ + kChunk - 1) / kChunk; }

    // Pairs of neighbours where rows are pairs, too; else a lane has inputs i and i + 16, so that rows of
    // float32 are read as they lie.
    static std::size_t place_in_chunk(std::size_t i) {
        if constexpr (std::is_same_v<Operand, Bf16>) return i;
        return i % 16 * 2 + i / 16;
    }

    // The row's numbers of one chunk, of which `left` are in the row: 16, 32 or more.
    QM_INLINE static B32 chunk_of(const Operand* x, std::size_t left) {
#ifdef QM_MULTIPLIES_PAIRS
        return as_pairs(load_words(left >= kChunk ? 0xFFFFFFFF : 0xFFFF, x));
#else
        return {load(x), left >= kChunk ? load(x + 16) : none_f()};
#endif
    }

    template <int kRows>
    QM_KERNEL void sum(const Bf16* weight, const Operand* x, float* to, std::size_t stride) const {
        F16 sums[kRows][kTogether];
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            QM_UNROLL
            for (std::size_t n = 0; n < kTogether; ++n) sums[r][n] = none_f();
        }
        for (std::size_t i = 0; i < in_; i += kChunk, weight += kTogether * kChunk) {
            B32 numbers[kRows];
            QM_UNROLL
            for (int r = 0; r < kRows; ++r) numbers[r] = chunk_of(x + r * in_ + i, in_ - i);
            QM_UNROLL
            for (std::size_t n = 0; n < kTogether; ++n) {
                const B32 ranks = as_pairs(load_i(weight + n * kChunk));
                QM_UNROLL
                for (int r = 0; r < kRows; ++r) sums[r][n] = dot(sums[r][n], ranks, numbers[r]);
            }
        }
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            QM_UNROLL
            for (std::size_t n = 0; n < kTogether; ++n) to[r * stride + n] = sum_of(sums[r][n]);
        }
    }

    std::size_t count_ = 0, in_ = 0;
    Bf16* data_ = nullptr;
};

}  // namespace quickmatch::QM_ISA
