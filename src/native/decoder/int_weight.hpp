// Weights in 8 or 4 bits as their product reads them, and rows rounded to 8 bits.
//
// The layout is that of weight.hpp, with four inputs to a dword: byte b of dword (quad q, output o)
// holds the code of w[o][4q + b]; in 4 bits a byte holds two quads, the earlier one in its low half.
// Codes are unsigned and rows are signed, as AVX-512 VNNI's product wants them. A group of inputs has
// a scale for each output and one for each row.
//
// A weight is (code - zero) · scale. MXFP4's codes are looked up first: its sixteen numbers, counted in
// halves and moved up, are small whole ones.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "memory.hpp"
#include "rows.hpp"
#include "team.hpp"
#include "weight.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kMostGrouped = 128;  // inputs whose sum is taken before it is scaled

enum class CodeKind { int8, int4, mxfp4 };

constexpr int bits_of(CodeKind kind) { return kind == CodeKind::int8 ? 8 : 4; }

// What stands for 0.0 in symmetric formats; in MXFP4 by how much its numbers are moved up.
constexpr int zero_of(CodeKind kind) {
    return kind == CodeKind::int8 ? 128 : kind == CodeKind::int4 ? 8 : 12;
}

// MXFP4's numbers by code, moved up (mxfp4.py).
constexpr std::uint8_t kMxfp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// A matrix as formats.py has it: codes [out, in], one a byte; scales and zeros [out, groups].
struct Codes {
    const std::uint8_t* codes;
    const float* scales;
    const std::uint8_t* zeros;  // null: the middle of the codes
    std::size_t num_groups;
    CodeKind kind;
};

class IntWeight {
  public:
    IntWeight() = default;
    // bias: [out] bfloat16, or null. Throws std::invalid_argument unless groups are multiples of 16 inputs.
    IntWeight(Arena& arena, const Codes& from, const Bf16* bias, std::size_t out, std::size_t in,
              Team* team = nullptr)
        : out_(out), in_(in), panels_((out + kPanel - 1) / kPanel), kind_(from.kind), bits_(bits_of(from.kind)) {
        const std::size_t stored = in / from.num_groups;
        if (stored * from.num_groups != in || stored % kLanes != 0) {
            throw std::invalid_argument("groups of " + std::to_string(stored) + " inputs are no multiple of 16");
        }
        group_ = std::min(stored, kMostGrouped);
        while (group_ > kLanes && stored % group_ != 0) group_ -= kLanes;
        const std::size_t lanes = panels_ * kPanel, scales = lanes * num_scales();
        data_ = arena.take<std::uint8_t>(lanes * in * bits_ / 8);
        scales_ = arena.take<std::uint16_t>(scales);
        if (from.zeros != nullptr) zeros_ = arena.take<std::uint8_t>(scales);
        if (bias != nullptr) bias_ = arena.take<float>(lanes);
        const auto pack = [&](std::size_t first, std::size_t last) {
            for (std::size_t panel = first; panel < last; ++panel) pack_panel(from.codes, panel);
        };
        if (team == nullptr) {
            pack(0, panels_);
        } else {
            team->share(panels_, pack);
        }
        for (std::size_t o = 0; o < out; ++o) {
            for (std::size_t k = 0; k < num_scales(); ++k) {
                const std::size_t at = scale_at(o, k), own = o * from.num_groups + k * from.num_groups / num_scales();
                scales_[at] = half(from.scales[own] * kScaleUp);
                if (zeros_ != nullptr) zeros_[at] = from.zeros[own];
            }
            if (bias != nullptr) bias_[o] = widen(bias[o]);
        }
    }

    std::size_t out() const { return out_; }
    std::size_t in() const { return in_; }
    std::size_t group() const { return group_; }
    std::size_t num_scales() const { return in_ / group_; }  // of an output
    CodeKind kind() const { return kind_; }
    std::size_t num_groups() const { return (panels_ + kGroup - 1) / kGroup; }  // of panels
    std::size_t group_width(std::size_t g) const { return std::min(kGroup, panels_ - g * kGroup); }
    const std::uint8_t* data(std::size_t g) const { return data_ + g * kGroup * kPanel * in_ * bits_ / 8; }
    const std::uint16_t* scales(std::size_t g) const { return scales_ + g * kGroup * kPanel * num_scales(); }
    const std::uint8_t* zeros(std::size_t g) const {
        return zeros_ == nullptr ? nullptr : zeros_ + g * kGroup * kPanel * num_scales();
    }
    const float* bias(std::size_t g) const { return bias_ == nullptr ? nullptr : bias_ + g * kGroup * kPanel; }
    std::size_t num_bytes() const {
        const std::size_t lanes = panels_ * kPanel;
        return lanes * in_ * bits_ / 8 + lanes * num_scales() * (zeros_ == nullptr ? 2 : 3) +
               (bias_ == nullptr ? 0 : lanes * sizeof(float));
    }

    // The numbers that an output's codes stand for: [in].
    void read(std::size_t o, float* out) const {
        const std::size_t g = o / (kPanel * kGroup);
        const std::uint8_t* from = data(g) + (o / kPanel % kGroup * kPanel + o % kPanel) * 4;
        const std::size_t step = group_width(g) * kPanel * 4;
        for (std::size_t i = 0; i < in_; ++i) {
            const std::uint8_t both = bits_ == 8 ? from[i / 4 * step + i % 4] : from[i / 8 * step + i % 4];
            const int code = bits_ == 8 ? both : both >> (i % 8 < 4 ? 0 : 4) & 0x0F;
            const std::size_t at = scale_at(o, i / group_);
            const int number = kind_ == CodeKind::mxfp4 ? kMxfp4[code] : code;
            const int zero = zeros_ == nullptr ? zero_of(kind_) : zeros_[at];
            out[i] = float(number - zero) * whole(scales_[at]) / kScaleUp;
        }
    }

    // Scales are kept as float16; of small weights they would be too small for it.
    static constexpr float kScaleUp = 256.0f;

  private:
    QM_KERNEL void pack_panel(const std::uint8_t* codes, std::size_t panel) {
        const std::size_t o = panel * kPanel, g = panel / kGroup;
        const std::uint8_t* from = codes + o * in_;
        std::uint8_t* to = data_ + g * kGroup * kPanel * in_ * bits_ / 8 + panel % kGroup * kPanel * 4;
        for (std::size_t i = 0; i < in_; i += 32 / bits_, to += group_width(g) * kPanel * 4) {
            I16 column = take_column(from + i, in_, out_ - o);
            if (bits_ == 4) {
                const I16 high = take_column(from + i + 4, in_, out_ - o);
                column = bit_or(column, left16<4>(high));
            }
            store_i(to, column);
        }
    }

    std::size_t scale_at(std::size_t o, std::size_t k) const {
        const std::size_t g = o / (kPanel * kGroup), width = group_width(g);
        return g * kGroup * kPanel * num_scales() + k * width * kPanel + o / kPanel % kGroup * kPanel + o % kPanel;
    }

    QM_KERNEL static std::uint16_t half(float value) {
        return std::uint16_t(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(value), 0), 0));
    }

    QM_KERNEL static float whole(std::uint16_t value) {
        return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(value)));
    }

    std::size_t out_ = 0, in_ = 0, panels_ = 0, group_ = 1;
    CodeKind kind_ = CodeKind::int8;
    int bits_ = 8;
    std::uint8_t* data_ = nullptr;
    std::uint16_t* scales_ = nullptr;
    std::uint8_t* zeros_ = nullptr;
    float* bias_ = nullptr;
};

// Rows rounded to 8 bits, group by group, the largest number of a group being 127.
class RoundedRows {
  public:
    void round(Team& team, const Operand* x, std::size_t num_rows, std::size_t in, std::size_t group) {
        in_ = in;
        num_groups_ = in / group;
        codes_.at_least(num_rows * in);
        scales_.at_least(num_rows * num_groups_);
        sums_.at_least(num_rows * num_groups_);
        const auto some = [&](std::size_t first, std::size_t last) {
            for (std::size_t r = first; r < last; ++r) round_row(x + r * in, r, group);
        };
        if (num_rows < 16) {
            some(0, num_rows);
        } else {
            team.share(num_rows, some);
        }
    }

    const std::int8_t* codes(std::size_t row) const { return codes_.data() + row * in_; }
    const float* scales(std::size_t row) const { return scales_.data() + row * num_groups_; }
    const std::int32_t* sums(std::size_t row) const { return sums_.data() + row * num_groups_; }
    std::size_t row_size() const { return in_; }
    std::size_t num_groups() const { return num_groups_; }

  private:
    void round_row(const Operand* x, std::size_t row, std::size_t group) {
        for (std::size_t k = 0; k < num_groups_; ++k) {
            std::int8_t* codes = codes_.data() + row * in_ + k * group;
            const Rounded rounded = round_to_int8(x + k * group, group, codes);
            scales_.data()[row * num_groups_ + k] = rounded.most / (127.0f * IntWeight::kScaleUp);
            sums_.data()[row * num_groups_ + k] = rounded.sum;
        }
    }

    std::size_t in_ = 0, num_groups_ = 0;
    Scratch<std::int8_t> codes_;
    Scratch<float> scales_;
    Scratch<std::int32_t> sums_;
};

// The low halves of bytes, of MXFP4 the numbers that they stand for.
template <CodeKind kKind>
QM_INLINE I16 low_codes(I16 bytes) {
    const I16 codes = bit_and(bytes, all_i8(0x0F));
    if constexpr (kKind == CodeKind::mxfp4) {
        return look_up(repeat16(kMxfp4), codes);
    } else {
        return codes;
    }
}

// A group's sum, scaled, and what the groups before it came to. zero: none_f() in symmetric formats.
QM_INLINE F16 add_scaled(F16 total, I16 sum, F16 scale, float row_scale, bool has_zeros, F16 zero, std::int32_t row_sum) {
    F16 numbers = to_float(sum);
    if (has_zeros) numbers = fnma(zero, all(float(row_sum)), numbers);
    return fma(numbers, mul(scale, all(row_scale)), total);
}

// What a group's sum starts at, where the zero is the same for all outputs.
template <CodeKind kKind>
QM_INLINE I16 start_of_sum(bool has_zeros, std::int32_t row_sum) {
    return all_i32(has_zeros ? 0 : -zero_of(kKind) * row_sum);
}

// One group of panels of a weight.
struct IntPanels {
    const std::uint8_t* data;
    const std::uint16_t* scales;
    const std::uint8_t* zeros;
    const float* bias;
    std::size_t group, num_scales, num_outputs;

    // From this column on, the first of a panel.
    IntPanels from(std::size_t column) const {
        return {data + column * 4,
                scales + column,
                zeros == nullptr ? nullptr : zeros + column,
                bias == nullptr ? nullptr : bias + column,
                group,
                num_scales,
                num_outputs - column};
    }
};

}  // namespace quickmatch::QM_ISA
