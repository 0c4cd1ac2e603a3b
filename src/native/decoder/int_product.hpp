// y = x · Wᵀ for weights in 8 or 4 bits: rows are rounded to 8 bits, products summed as integers.
//
// The layout is that of product.hpp, with four inputs to a dword: byte b of dword (quad q, output o)
// holds the code of w[o][4q + b]; in 4 bits a byte holds two quads, the earlier one in its low half.
// Codes are unsigned and rows are signed, as AVX-512 VNNI's product wants them. A group of inputs has
// a scale for each output and one for each row; the sum over a group is exact, so an output's bits are
// a function of its row and its weights alone, as they are in bfloat16.
//
// A weight is (code - zero) · scale, so a group's sum is scale · (Σ code·x - zero · Σ x). MXFP4's codes
// are looked up first: its sixteen numbers, counted in halves and moved up, are small whole ones.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "memory.hpp"
#include "product.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kIntTileRows = kHas32Registers ? 6 : 4;  // of sums; as many totals wait in memory
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
    // bias: [out] bfloat16, or null. A stored group's inputs are a multiple of 16.
    IntWeight(Arena& arena, const Codes& from, const Bf16* bias, std::size_t out, std::size_t in,
              Team* team = nullptr)
        : out_(out), in_(in), panels_((out + kPanel - 1) / kPanel), kind_(from.kind), bits_(bits_of(from.kind)) {
        const std::size_t stored = in / from.num_groups;
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

// kPanels of the kWidth that stand together, from the first of `panels` on.
template <CodeKind kKind, int kRows, int kPanels, int kWidth>
QM_KERNEL void multiply_int_tile(const IntPanels& panels, const RoundedRows& rows, std::size_t first_row,
                                 const Target& to, Ahead ahead) {
    constexpr int kBits = bits_of(kKind);
    const I16 low_half = all_i8(0x0F);
    const I16 numbers = repeat16(kMxfp4);
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
            const std::int32_t zero = panels.zeros == nullptr ? zero_of(kKind) : 0;
            const I16 start = all_i32(-zero * rows.sums(first_row + r)[k]);
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
                        columns[n] = bit_and(columns[n], low_half);
                        if constexpr (kKind == CodeKind::mxfp4) {
                            columns[n] = look_up(numbers, columns[n]);
                        }
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
                F16 sum = to_float(sums[r][n]);
                if (panels.zeros != nullptr) {
                    const float total = float(rows.sums(first_row + r)[k]);
                    sum = fnma(zero, all(total), sum);
                }
                const F16 both = mul(scale, all(rows.scales(first_row + r)[k]));
                totals[r][n] = fma(sum, both, totals[r][n]);
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
        const Ahead ahead(panels.data + size, num_tiles <= kIntTilesUnaided ? 0 : size, kPanels * kBits / 8, tile, num_tiles);
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
