// Whether AMX's tiles do what this code takes them to do: asked once, of the processor itself.
#pragma once

#include "isa.hpp"

#include <cstdint>
#include <cstring>
#include <vector>

#include "matrix.hpp"

namespace quickmatch::QM_ISA {

// Products of small whole numbers, which are exact however they are summed: in bfloat16 against plain
// arithmetic, in 8 bits against AVX-512's.
inline bool tiles_are_right() {
    constexpr std::size_t kRows = kTileRows + 3, kIn = 3 * kTileBytes + 4, kOut = kGroupOutputs;
    const auto bfloat16 = [](int value) {
        const float wide = float(value);
        std::uint32_t bits;
        std::memcpy(&bits, &wide, sizeof bits);
        return Bf16(bits >> 16);
    };
    Arena arena(false);
    std::vector<Bf16> weights(kOut * kIn);
    std::vector<Operand> x(kRows * kIn);
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = bfloat16(int(i * 7 % 11) - 5);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = bfloat16(int(i * 5 % 13) - 6);
    std::vector<float> sums(kRows * kOut), others(kRows * kOut);
    multiply_groups(Weight(arena, weights.data(), nullptr, kOut, kIn), 0, 1, x.data(), kIn, kRows,
                    Target{sums.data(), kOut, false});
    for (std::size_t r = 0; r < kRows; ++r) {
        for (std::size_t o = 0; o < kOut; ++o) {
            float sum = 0.0f;
            for (std::size_t i = 0; i < kIn; ++i) sum += widen(x[r * kIn + i]) * widen(weights[o * kIn + i]);
            if (sum != sums[r * kOut + o]) return false;
        }
    }
    constexpr std::size_t kGrouped = 2 * kTileBytes;
    std::vector<std::uint8_t> codes(kOut * kGrouped);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = std::uint8_t(i * 37 % 256);
    const std::vector<float> scales(kOut, 1.0f);
    const IntWeight in8(arena, Codes{codes.data(), scales.data(), nullptr, 1, CodeKind::int8}, nullptr, kOut, kGrouped);
    Team alone(1);
    RoundedRows rounded;
    rounded.round(alone, x.data(), kRows, kGrouped, in8.group());
    const IntPanels panels{in8.data(0), in8.scales(0), nullptr, nullptr, in8.group(), in8.num_scales(), kOut};
    multiply_int_in_tiles<CodeKind::int8>(kGroup, panels, rounded, kRows, Target{sums.data(), kOut, false});
    multiply_int_rows<CodeKind::int8, kGroup>(panels, rounded, kRows, Target{others.data(), kOut, false});
    return sums == others;
}

}  // namespace quickmatch::QM_ISA
