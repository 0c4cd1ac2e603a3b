// The second product of an adapter, ranks · Bᵀ, added to the outputs of one matrix.
//
// Of a few pairs of ranks each, so that it is over before multiply_groups (product.hpp) would have
// begun. Panels of sixteen outputs lie one after the other, each with all its pairs of ranks. Where an
// adapter is held in bytes, the sums of ranks are rounded to words and the product is one of integers.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "memory.hpp"
#include "ranks.hpp"
#include "rows.hpp"
#include "simd.hpp"
#include "weight.hpp"

namespace quickmatch::QM_ISA {

// The outputs of one of the matrices that stand side by side in a larger one, and the ranks that add to them.
struct RankBlock {
    std::size_t first, last;  // outputs, multiples of 16
    std::size_t first_rank, last_rank;
};

// What the ranks of some rows come to. Held in bytes: words, each row's to be multiplied by a scale.
struct RankSums {
    std::size_t stride;  // of a row
    const Operand* numbers;
    const std::int16_t* words;
    const float* scales;  // by row

    QM_INLINE B32 pair(const Bf16*, std::size_t row, std::size_t rank) const {
        return pair_of(numbers + row * stride + rank);
    }
    QM_INLINE I16 pair(const std::int8_t*, std::size_t row, std::size_t rank) const {
        std::int32_t two;
        std::memcpy(&two, words + row * stride + rank, sizeof two);
        return all_i32(two);
    }
};

class RankOutputs {
  public:
    // up: [outputs, num_ranks] bfloat16, of which it takes a block. scales: of each rank, where it is to hold
    // bytes; null to hold bfloat16. The arena outlives it.
    RankOutputs(Arena& arena, const Bf16* up, std::size_t num_ranks, const RankBlock& block, const float* scales)
        : block_(block),
          pairs_((block.last_rank - block.first_rank + 1) / 2),
          holds_bytes_(scales != nullptr),
          data_(arena.take<char>(num_bytes())) {
        for (std::size_t o = block.first; o < block.last; o += kPanel) {
            for (std::size_t p = 0; p < pairs_; ++p) {
                const std::size_t rank = block.first_rank + 2 * p;
                pack(up + o * num_ranks + rank, num_ranks, rank + 1 < num_ranks, scales == nullptr ? nullptr : scales + rank,
                     (o - block.first) / kPanel * pairs_ + p);
            }
        }
    }

    std::size_t num_bytes() const { return size_of(block_.last - block_.first) * (holds_bytes_ ? 1 : sizeof(Bf16)); }

    // Of outputs [first, last), multiples of 16, add to those that are the block's. to: the rows' outputs,
    // from the first of all. next: what is added after it, and fetched meanwhile; null if nothing is.
    void add_to(std::size_t first, std::size_t last, const RankSums& sums, const std::vector<std::size_t>& rows,
                const Target& to, const RankOutputs* next) const {
        first = std::max(first, block_.first);
        last = std::min(last, block_.last);
        if (first >= last) return;
        const bool is_alike = next != nullptr && next->num_bytes() == num_bytes();
        const std::size_t at = size_of(first - block_.first), num_panels = (last - first) / kPanel;
        const Target part{to.data + first, to.stride, true};
        const auto add = [&](const auto* numbers, const auto* ahead) {
            for (std::size_t row = 0; row < rows.size();) {
                const auto run = [&](auto count) {
                    constexpr int kRows = decltype(count)::value;
                    switch (pairs_) {  // of ranks 8 and 16 without a loop
                        case 4: add_rows<kRows, 4>(numbers + at, ahead + at, num_panels, sums, row, rows, part); break;
                        case 8: add_rows<kRows, 8>(numbers + at, ahead + at, num_panels, sums, row, rows, part); break;
                        default: add_rows<kRows, 0>(numbers + at, ahead + at, num_panels, sums, row, rows, part);
                    }
                    row += kRows;
                };
                if (kHas32Registers && rows.size() - row >= 4) {
                    run(std::integral_constant<int, 4>());
                } else {
                    run(std::integral_constant<int, 1>());
                }
            }
        };
        const void* ahead = is_alike ? next->data_ : data_;
        if (holds_bytes_) {
            add(static_cast<const std::int8_t*>(data_), static_cast<const std::int8_t*>(ahead));
        } else {
            add(static_cast<const Bf16*>(data_), static_cast<const Bf16*>(ahead));
        }
    }

  private:
    std::size_t size_of(std::size_t outputs) const { return outputs * 2 * pairs_; }  // numbers

    // Two ranks of sixteen outputs, from the first of both on; or one, behind which the row ends.
    QM_KERNEL void pack(const Bf16* up, std::size_t num_ranks, bool has_second, const float* scales,
                        std::size_t place) const {
        std::uint32_t pairs[kPanel];
        if (has_second) {
            store_i(pairs, take_column(up, num_ranks * sizeof(Bf16), kPanel));
        } else {
            for (std::size_t o = 0; o < kPanel; ++o) pairs[o] = up[o * num_ranks];
        }
        if (scales == nullptr) {
            std::memcpy(static_cast<Bf16*>(data_) + place * 2 * kPanel, pairs, sizeof pairs);
            return;
        }
        const I16 both = load_i(pairs);
        const auto code = [&](I16 bits, float scale) QM_KERNEL {
            return to_int(mul(as_float(bits), all(scale > 0 ? 1 / scale : 0.0f)));
        };
        const I16 first = bit_and(code(left32<16>(both), scales[0]), all_i32(0xFF));
        const I16 second = code(bit_and(both, all_i32(std::int32_t(0xFFFF0000))), has_second ? scales[1] : 0.0f);
        narrow_i16(static_cast<std::int8_t*>(data_) + place * 2 * kPanel, bit_or(first, left32<8>(second)));
    }

    QM_INLINE static F16 add_pairs(F16 sum, const Bf16* weight, const B32& two) {
        return dot(sum, as_pairs(load_i(weight)), two);
    }
    QM_INLINE static I16 add_pairs(I16 sum, const std::int8_t* weight, I16 two) {
        return dot_words(sum, words_of_bytes(weight), two);
    }

    // Rows from `row` on, and so many panels; four of those at a time.
    template <int kRows, int kPairs, typename Number>
    QM_KERNEL void add_rows(const Number* weight, const Number* ahead, std::size_t num_panels, const RankSums& from,
                            std::size_t row, const std::vector<std::size_t>& rows, const Target& to) const {
        const std::size_t size = (kPairs == 0 ? pairs_ : kPairs) * 2 * kPanel;  // of a panel
        float* outs[kRows];
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) outs[r] = to.data + rows[row + r] * to.stride;
        std::size_t panel = 0;
        for (; panel + 4 <= num_panels; panel += 4) {
            add_panels<kRows, 4, kPairs>(weight + panel * size, ahead + panel * size, from, row, outs, panel * kPanel);
        }
        for (; panel < num_panels; ++panel) {
            add_panels<kRows, 1, kPairs>(weight + panel * size, ahead + panel * size, from, row, outs, panel * kPanel);
        }
    }

    template <int kRows, int kPanels, int kPairs, typename Number>
    QM_INLINE void add_panels(const Number* weight, const Number* ahead, const RankSums& from, std::size_t row,
                              float* const (&outs)[kRows], std::size_t column) const {
        const std::size_t pairs = kPairs == 0 ? pairs_ : kPairs;
        decltype(no_sum(weight)) sums[kRows][kPanels];
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            QM_UNROLL
            for (int n = 0; n < kPanels; ++n) sums[r][n] = no_sum(weight);
        }
        QM_UNROLL
        for (std::size_t p = 0; p < pairs; ++p) {
            QM_UNROLL
            for (int n = 0; n < kPanels; ++n) {
                const std::size_t at = (n * pairs + p) * 2 * kPanel;
                if (at * sizeof(Number) % kCacheLine == 0) _mm_prefetch(ahead + at, _MM_HINT_T0);
                QM_UNROLL
                for (int r = 0; r < kRows; ++r) {
                    const auto two = from.pair(weight, row + r, block_.first_rank + 2 * p);
                    sums[r][n] = add_pairs(sums[r][n], weight + at, two);
                }
            }
        }
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            QM_UNROLL
            for (int n = 0; n < kPanels; ++n) {
                float* out = outs[r] + column + n * kPanel;
                store(out, add_total(sums[r][n], from, row + r, load(out)));
            }
        }
    }

    QM_INLINE static F16 add_total(F16 sum, const RankSums&, std::size_t, F16 old) { return add(old, sum); }
    QM_INLINE static F16 add_total(I16 sum, const RankSums& from, std::size_t row, F16 old) {
        return fma(to_float(sum), all(from.scales[row]), old);
    }

    RankBlock block_;
    std::size_t pairs_;
    bool holds_bytes_;
    void* data_;
};

}  // namespace quickmatch::QM_ISA
