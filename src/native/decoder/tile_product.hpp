// Rows of bfloat16 against the panels of a weight in AMX's tiles.
//
// A tile's product sums over 32 inputs, and rows of a tile do not meet: so an output's bits are a
// function of its row and its weights here too, and one row goes the same way as hundreds.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "memory.hpp"
#include "tiles.hpp"
#include "weight.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kTilePairs = kTileDwords;  // that one product sums over
// Of a weight, while all rows are multiplied with it: 16 KiB of four panels stay in the first cache.
constexpr std::size_t kBlockPairs = 4 * kTilePairs;

// By the weight alone, as the bits depend on it. Few panels are left to AVX-512, which sums them in
// several chains; tiles would wait for each other.
inline bool is_tiled(std::size_t width, std::size_t pairs) { return width > 2 && pairs >= kTilePairs; }

// Call task with 0, 1, … as constants, as many as kCount says.
template <int kCount, typename Task>
QM_INLINE void for_each_panel(const Task& task) {
    [&]<int... kPanels>(std::integer_sequence<int, kPanels...>) {
        (task(std::integral_constant<int, kPanels>()), ...);
    }(std::make_integer_sequence<int, kCount>());
}

template <int kWidth>
QM_KERNEL void multiply_panels_in_tiles(const std::uint32_t* weight, std::size_t pairs, const Operand* x,
                                        std::size_t x_stride, std::size_t num_rows, const float* bias,
                                        const Target& to, std::size_t num_outputs) {
    constexpr std::size_t kStep = kWidth * kPanel;
    thread_local Scratch<float> scratch;
    float* sums = scratch.at_least(num_rows * kStep);
    const std::size_t whole = pairs / kTilePairs * kTilePairs;
    const std::size_t block = num_rows <= kTileRows ? whole : kBlockPairs;
    {
        Tiles tiles;
        for (std::size_t start = 0; start < whole; start += block) {
            for (std::size_t r = 0; r < num_rows; r += kTileRows) {
                float* own = sums + r * kStep;
                tiles.resize(std::min(kTileRows, num_rows - r), kTileBytes);
                for_each_panel<kWidth>([&](auto n) {
                    if (start == 0) {
                        tile_zero<n>();
                    } else {
                        tile_load<n>(own + n * kPanel, kStep * sizeof(float));
                    }
                });
                for (std::size_t p = start; p < std::min(start + block, whole); p += kTilePairs) {
                    tile_load<kRowsTile>(x + r * x_stride + 2 * p, x_stride * sizeof(Operand));
                    for_each_panel<kWidth>([&](auto n) {
                        tile_load<weights_tile(n)>(weight + p * kStep + n * kPanel, kStep * sizeof(float));
                        tile_dot_pairs<n, kRowsTile, weights_tile(n)>();
                    });
                }
                for_each_panel<kWidth>([&](auto n) { tile_store<n>(own + n * kPanel, kStep * sizeof(float)); });
            }
        }
    }
    for (std::size_t r = 0; r < num_rows; ++r) {
        F16 row[1][kWidth];
        for (int n = 0; n < kWidth; ++n) row[0][n] = load(sums + r * kStep + n * kPanel);
        for (std::size_t p = whole; p < pairs; ++p) {
            add_pair<1, kWidth>(weight + p * kStep, x + r * x_stride + 2 * p, x_stride, row);
        }
        for (int n = 0; n < kWidth; ++n) put_sums(row[0][n], n, bias, to, r, num_outputs);
    }
}

// width: of the panels that stand together; 3 or 4.
inline void multiply_in_tiles(std::size_t width, const std::uint32_t* weight, std::size_t pairs, const Operand* x,
                              std::size_t x_stride, std::size_t num_rows, const float* bias, const Target& to,
                              std::size_t num_outputs) {
    if (width == 3) {
        multiply_panels_in_tiles<3>(weight, pairs, x, x_stride, num_rows, bias, to, num_outputs);
    } else {
        multiply_panels_in_tiles<4>(weight, pairs, x, x_stride, num_rows, bias, to, num_outputs);
    }
}

}  // namespace quickmatch::QM_ISA
