// Rows of 8 bits against the panels of a weight in 8 or 4 bits, in AMX's tiles.
//
// The sums of a group of inputs are integers, exact in whatever order, and are scaled as int_product.hpp
// scales them: the bits are its own, and whichever is quicker for so many rows may be taken. Codes of 4
// bits are taken apart once a group, for all rows.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "int_weight.hpp"
#include "memory.hpp"
#include "tile_product.hpp"
#include "tiles.hpp"

namespace quickmatch::QM_ISA {

// A group's codes, one a byte, four inputs to a dword. from: the group's, of kWidth panels.
template <CodeKind kKind, int kWidth>
QM_INLINE void take_apart(const std::uint8_t* from, std::size_t group, std::uint8_t* to) {
    constexpr std::size_t kStep = kWidth * kPanel * 4;  // bytes of four inputs
    for (std::size_t i = 0; i < group; i += 8, from += kStep, to += 2 * kStep) {
        for (std::size_t at = 0; at < kStep; at += kPanel * 4) {
            const I16 both = load_i(from + at);
            store_i(to + at, low_codes<kKind>(both));
            store_i(to + kStep + at, low_codes<kKind>(right16<4>(both)));
        }
    }
}

template <CodeKind kKind, int kWidth>
QM_KERNEL void multiply_int_panels_in_tiles(const IntPanels& panels, const RoundedRows& rows, std::size_t num_rows,
                                            const Target& to) {
    constexpr std::size_t kStep = kWidth * kPanel;
    thread_local Scratch<float> scratch;
    alignas(kCacheLine) std::uint8_t apart[kMostGrouped * kStep];
    alignas(kCacheLine) std::int32_t sums[kWidth][kTileRows * kPanel];
    float* totals = scratch.at_least(num_rows * kStep);
    std::fill(totals, totals + num_rows * kStep, 0.0f);
    const std::size_t group = panels.group, depth = std::gcd(group, kTileBytes);
    const bool has_zeros = panels.zeros != nullptr;
    {
        Tiles tiles;
        for (std::size_t k = 0; k < panels.num_scales; ++k) {
            const std::uint8_t* codes = panels.data + k * group * kStep * bits_of(kKind) / 8;
            if constexpr (kKind != CodeKind::int8) {
                take_apart<kKind, kWidth>(codes, group, apart);
                codes = apart;
            }
            for (std::size_t first = 0; first < num_rows; first += kTileRows) {
                const std::size_t count = std::min(kTileRows, num_rows - first);
                tiles.resize(count, depth);
                for_each_panel<kWidth>([&](auto n) { tile_zero<n>(); });
                for (std::size_t i = 0; i < group; i += depth) {
                    tile_load<kRowsTile>(rows.codes(first) + k * group + i, rows.row_size());
                    for_each_panel<kWidth>([&](auto n) {
                        tile_load<weights_tile(n)>(codes + i * kStep + n * kPanel * 4, kStep * 4);
                        tile_dot_bytes<n, kRowsTile, weights_tile(n)>();
                    });
                }
                for_each_panel<kWidth>([&](auto n) { tile_store<n>(sums[n], kTileBytes); });
                for (int n = 0; n < kWidth; ++n) {
                    const std::size_t at = k * kStep + n * kPanel;
                    const F16 scale = load_half(panels.scales + at);
                    const F16 zero = has_zeros ? to_float(widen_u8(panels.zeros + at)) : none_f();
                    for (std::size_t r = 0; r < count; ++r) {
                        const std::int32_t row_sum = rows.sums(first + r)[k];
                        const I16 sum = add(start_of_sum<kKind>(has_zeros, row_sum), load_i(sums[n] + r * kPanel));
                        float* total = totals + (first + r) * kStep + n * kPanel;
                        store(total, add_scaled(load(total), sum, scale, rows.scales(first + r)[k], has_zeros, zero, row_sum));
                    }
                }
            }
        }
    }
    for (std::size_t r = 0; r < num_rows; ++r) {
        for (int n = 0; n < kWidth; ++n) {
            put_sums(load(totals + r * kStep + n * kPanel), n, panels.bias, to, r, panels.num_outputs);
        }
    }
}

// width: of the panels that stand together.
template <CodeKind kKind>
void multiply_int_in_tiles(std::size_t width, const IntPanels& panels, const RoundedRows& rows, std::size_t num_rows,
                           const Target& to) {
    switch (width) {
        case 1: return multiply_int_panels_in_tiles<kKind, 1>(panels, rows, num_rows, to);
        case 2: return multiply_int_panels_in_tiles<kKind, 2>(panels, rows, num_rows, to);
        case 3: return multiply_int_panels_in_tiles<kKind, 3>(panels, rows, num_rows, to);
        default: return multiply_int_panels_in_tiles<kKind, 4>(panels, rows, num_rows, to);
    }
}

}  // namespace quickmatch::QM_ISA
