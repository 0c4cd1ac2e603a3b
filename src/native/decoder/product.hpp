// y = x · Wᵀ: few rows of bfloat16 against a large weight (weight.hpp), summed in float32.
//
// A tile of up to six rows and four panels is summed in registers over all inputs, one pair after
// the other; one or two panels that stand alone in four chains, as so few sums would wait for each
// other. So an output's bits are a function of its row and its weights, whatever rows stand beside
// it: on which it rests that a draft's verification gives what plain decoding would.
//
// Where the processor has AMX, its tiles take over what is large enough (tile_product.hpp).
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "team.hpp"
#include "tile_product.hpp"
#include "weight.hpp"

namespace quickmatch::QM_ISA {

// By how many panels stand together, which is to say by the output: its bits depend on its chains.
constexpr int num_chains(int width) {
    if (kHas32Registers) return width <= 2 ? 4 : 1;
    return width <= 2 ? 4 / width : 1;
}
// 24 sums, of 32 registers; or 8, of 16, each of which holds half a panel's.
constexpr int num_tile_rows(int width) {
    if (kHas32Registers) return width == 2 ? 3 : 6;
    return width <= 2 ? 1 : 4;
}
// kPanels of the kWidth that stand together, from the first of `weight` on.
template <int kRows, int kPanels, int kWidth>
QM_KERNEL void multiply_tile(const std::uint32_t* weight, std::size_t pairs, const Operand* x,
                             std::size_t x_stride, const float* bias, const Target& to,
                             std::size_t num_outputs, Ahead ahead) {
    constexpr int kChains = num_chains(kWidth);
    constexpr std::size_t kStep = kWidth * kPanel;
    F16 sums[kChains][kRows][kPanels];
    QM_UNROLL
    for (int c = 0; c < kChains; ++c) {
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            QM_UNROLL
            for (int n = 0; n < kPanels; ++n) sums[c][r][n] = none_f();
        }
    }
    std::size_t p = 0;
    for (; p + kChains <= pairs; p += kChains) {
        ahead.fetch();
        QM_UNROLL
        for (int c = 0; c < kChains; ++c) {
            add_pair<kRows, kPanels>(weight + (p + c) * kStep, x + 2 * (p + c), x_stride, sums[c]);
        }
    }
    for (; p < pairs; ++p) add_pair<kRows, kPanels>(weight + p * kStep, x + 2 * p, x_stride, sums[0]);
    QM_UNROLL
    for (int n = 0; n < kPanels; ++n) {
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            F16 sum = sums[0][r][n];
            QM_UNROLL
            for (int c = 1; c < kChains; ++c) sum = add(sum, sums[c][r][n]);
            put_sums(sum, n, bias, to, r, num_outputs);
        }
    }
}

template <int kPanels>
void multiply_rows(const std::uint32_t* weight, std::size_t pairs, const Operand* x,
                   std::size_t x_stride, std::size_t num_rows, const float* bias,
                   const Target& to, std::size_t num_outputs) {
    constexpr int kMost = num_tile_rows(kPanels);
    // Tiles as equal as can be: 8 rows are twice 4, not 6 and 2.
    const std::size_t num_tiles = (num_rows + kMost - 1) / kMost;
    for (std::size_t tile = 0; tile < num_tiles; ++tile) {
        const std::size_t first = num_rows * tile / num_tiles;
        const Target part{to.data + first * to.stride, to.stride, to.adds};
        const std::uint32_t* next = weight + pairs * kPanels * kPanel;
        const std::size_t size = num_tiles <= kTilesUnaided ? 0 : pairs * kPanels * kCacheLine;
        const Ahead ahead(next, size, kPanels, tile, num_tiles);
        const auto run = [&](auto count) {
            constexpr int kRows = std::min(decltype(count)::value, kMost);
            constexpr int kAtOnce = num_at_once(kPanels, kRows);
            for (int n = 0; n < kPanels; n += kAtOnce) {
                const std::size_t column = n * kPanel;
                if (column >= num_outputs) break;
                multiply_tile<kRows, kAtOnce, kPanels>(
                    weight + column, pairs, x + first * x_stride, x_stride, bias == nullptr ? nullptr : bias + column,
                    Target{part.data + column, part.stride, part.adds}, num_outputs - column, ahead);
            }
        };
        switch (num_rows * (tile + 1) / num_tiles - first) {
            case 1: run(std::integral_constant<int, 1>()); break;
            case 2: run(std::integral_constant<int, 2>()); break;
            case 3: run(std::integral_constant<int, 3>()); break;
            case 4: run(std::integral_constant<int, 4>()); break;
            case 5: run(std::integral_constant<int, 5>()); break;
            default: run(std::integral_constant<int, 6>());
        }
    }
}

// The sums of panel groups [first, last). x: [num_rows, weight.row_size()], its rows `stride` apart;
// to: [num_rows, weight.out()].
inline void multiply_groups(const Weight& weight, std::size_t first, std::size_t last, const Operand* x,
                            std::size_t stride, std::size_t num_rows, const Target& to) {
    const std::size_t pairs = weight.pairs();
    for (std::size_t g = first; g < last; ++g) {
        const std::size_t column = g * kGroupOutputs;
        const float* bias = weight.bias() == nullptr ? nullptr : weight.bias() + column;
        const Target part{to.data + column, to.stride, to.adds};
        const std::size_t left = weight.out() - column;
        const std::uint32_t* data = weight.group(g);
        if constexpr (kHasTiles) {
            if (is_tiled(weight.group_width(g), pairs)) {
                multiply_in_tiles(weight.group_width(g), data, pairs, x, stride, num_rows, bias, part, left);
                continue;
            }
        }
        switch (weight.group_width(g)) {
            case 1: multiply_rows<1>(data, pairs, x, stride, num_rows, bias, part, left); break;
            case 2: multiply_rows<2>(data, pairs, x, stride, num_rows, bias, part, left); break;
            case 3: multiply_rows<3>(data, pairs, x, stride, num_rows, bias, part, left); break;
            default: multiply_rows<4>(data, pairs, x, stride, num_rows, bias, part, left);
        }
    }
}

// The whole product, by the team.
inline void multiply(Team& team, const Weight& weight, const Operand* x, std::size_t stride,
                     std::size_t num_rows, const Target& to) {
    if (num_rows == 0) return;
    team.share(weight.num_groups(), [&](std::size_t first, std::size_t last) {
        multiply_groups(weight, first, last, x, stride, num_rows, to);
    });
}

// x: [num_rows, weight.row_size()].
inline void multiply(Team& team, const Weight& weight, const Operand* x, std::size_t num_rows,
                     const Target& to) {
    multiply(team, weight, x, weight.row_size(), num_rows, to);
}

}  // namespace quickmatch::QM_ISA
