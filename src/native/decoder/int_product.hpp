// y = x · Wᵀ for weights in 8 or 4 bits (int_weight.hpp): products are summed as integers.
//
// The sum over a group of inputs is exact, so an output's bits are a function of its row and its weights
// alone, as they are in bfloat16. A group's sum is scale · (Σ code·x - zero · Σ x).
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "int_weight.hpp"
#include "tile_int_product.hpp"
#include "weight.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kIntTileRows = kHas32Registers ? 6 : 4;  // of sums; as many totals wait in memory

// kPanels of the kWidth that stand together, from the first of `panels` on.
template <CodeKind kKind, int kRows, int kPanels, int kWidth>
QM_KERNEL void multiply_int_tile(const IntPanels& panels, const RoundedRows& rows, std::size_t first_row,
                                 const Target& to, Ahead ahead) {
    constexpr int kBits = bits_of(kKind);
    const std::uint8_t* weight = panels.data;
    F16 totals[kRows][kPanels];
    const std::int8_t* codes[kRows];
    QM_UNROLL
    for (int r = 0; r < kRows; ++r) {
        codes[r] = rows.codes(first_row + r);
        QM_UNROLL
        for (int n = 0; n < kPanels; ++n) totals[r][n] = none_f();
    }
    for (std::size_t k = 0; k < panels.num_scales; ++k) {
        I16 sums[kRows][kPanels];
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const I16 start = start_of_sum<kKind>(panels.zeros != nullptr, rows.sums(first_row + r)[k]);
            QM_UNROLL
            for (int n = 0; n < kPanels; ++n) sums[r][n] = start;
        }
        for (std::size_t i = 0; i < panels.group; i += kLanes) {
            QM_UNROLL
            for (int quad = 0; quad < 4; ++quad) {
                I16 columns[kPanels];
                QM_UNROLL
                for (int n = 0; n < kPanels; ++n) {
                    const int vector = quad * kBits / 8 * kWidth + n;
                    columns[n] = load_i(weight + vector * kPanel * 4);
                    if constexpr (kBits == 4) {
                        if (quad % 2 == 1) columns[n] = right16<4>(columns[n]);
                        columns[n] = low_codes<kKind>(columns[n]);
                    }
                }
                ahead.fetch();
                QM_UNROLL
                for (int r = 0; r < kRows; ++r) {
                    std::int32_t four;
                    std::memcpy(&four, codes[r] + i + 4 * quad, sizeof four);
                    const I16 each = all_i32(four);
                    QM_UNROLL
                    for (int n = 0; n < kPanels; ++n) {
                        sums[r][n] = dot_bytes(sums[r][n], columns[n], each);
                    }
                }
            }
            weight += kBits / 2 * kWidth * kPanel * 4;
        }
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) codes[r] += panels.group;
        QM_UNROLL
        for (int n = 0; n < kPanels; ++n) {
            const std::size_t at = (k * kWidth + n) * kPanel;
            const F16 scale = load_half(panels.scales + at);
            F16 zero = none_f();
            if (panels.zeros != nullptr) {
                zero = to_float(widen_u8(panels.zeros + at));
            }
            QM_UNROLL
            for (int r = 0; r < kRows; ++r) {
                totals[r][n] = add_scaled(totals[r][n], sums[r][n], scale, rows.scales(first_row + r)[k],
                                          panels.zeros != nullptr, zero, rows.sums(first_row + r)[k]);
            }
        }
    }
    QM_UNROLL
    for (int n = 0; n < kPanels; ++n) {
        QM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            put_sums(totals[r][n], n, panels.bias, to, r, panels.num_outputs);
        }
    }
}

template <CodeKind kKind, int kPanels>
void multiply_int_rows(const IntPanels& panels, const RoundedRows& rows, std::size_t num_rows,
                       const Target& to) {
    constexpr int kBits = bits_of(kKind);
    const std::size_t num_tiles = (num_rows + kIntTileRows - 1) / kIntTileRows;
    for (std::size_t tile = 0; tile < num_tiles; ++tile) {
        const std::size_t first = num_rows * tile / num_tiles;
        const Target part{to.data + first * to.stride, to.stride, to.adds};
        const std::size_t size = panels.group * panels.num_scales * kPanels * kPanel * kBits / 8;
        const Ahead ahead(panels.data + size, num_tiles <= kIntTilesUnaided ? 0 : size, kPanels * kBits / 8, tile,
                          num_tiles);
        const auto run = [&](auto count) {
            constexpr int kRows = std::min(decltype(count)::value, int(kIntTileRows));
            constexpr int kAtOnce = num_at_once(kPanels, kRows);
            for (int n = 0; n < kPanels; n += kAtOnce) {
                const std::size_t column = n * kPanel;
                if (column >= panels.num_outputs) break;
                multiply_int_tile<kKind, kRows, kAtOnce, kPanels>(
                    panels.from(column), rows, first, Target{part.data + column, part.stride, part.adds}, ahead);
            }
        };
        switch (num_rows * (tile + 1) / num_tiles - first) {
            case 1: run(std::integral_constant<int, 1>()); break;
            case 2: run(std::integral_constant<int, 2>()); break;
            case 3: run(std::integral_constant<int, 3>()); break;
            case 4: run(std::integral_constant<int, 4>()); break;
            case 5: run(std::integral_constant<int, 5>()); break;
            default: run(std::integral_constant<int, int(kIntTileRows)>());
        }
    }
}

template <CodeKind kKind>
void multiply_int_groups(const IntWeight& weight, std::size_t first, std::size_t last,
                         const RoundedRows& rows, std::size_t num_rows, const Target& to) {
    for (std::size_t g = first; g < last; ++g) {
        const std::size_t column = g * kGroupOutputs;
        const IntPanels panels{weight.data(g), weight.scales(g), weight.zeros(g),
                               weight.bias(g), weight.group(),   weight.num_scales(),
                               weight.out() - column};
        const Target part{to.data + column, to.stride, to.adds};
        if constexpr (kHasTiles) {
            if (num_rows > kIntTileRows) {  // exact either way, so the number of rows may decide
                multiply_int_in_tiles<kKind>(weight.group_width(g), panels, rows, num_rows, part);
                continue;
            }
        }
        switch (weight.group_width(g)) {
            case 1: multiply_int_rows<kKind, 1>(panels, rows, num_rows, part); break;
            case 2: multiply_int_rows<kKind, 2>(panels, rows, num_rows, part); break;
            case 3: multiply_int_rows<kKind, 3>(panels, rows, num_rows, part); break;
            default: multiply_int_rows<kKind, 4>(panels, rows, num_rows, part);
        }
    }
}

// The sums of panel groups [first, last). rows: x, rounded by the weight's groups of inputs.
inline void multiply_groups(const IntWeight& weight, std::size_t first, std::size_t last,
                            const RoundedRows& rows, std::size_t num_rows, const Target& to) {
    switch (weight.kind()) {
        case CodeKind::int8: return multiply_int_groups<CodeKind::int8>(weight, first, last, rows, num_rows, to);
        case CodeKind::int4: return multiply_int_groups<CodeKind::int4>(weight, first, last, rows, num_rows, to);
        case CodeKind::mxfp4: return multiply_int_groups<CodeKind::mxfp4>(weight, first, last, rows, num_rows, to);
    }
}

}  // namespace quickmatch::QM_ISA
