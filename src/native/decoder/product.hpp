// y = x · Wᵀ: few rows of bfloat16 against a large weight, summed in float32.
//
// A weight [out, in] is cut into panels of 16 outputs, and four panels stand together, so that a
// step reads the whole weight as one stream. Within them, pairs of inputs are the unit of AVX-512's
// bfloat16 product: dword (pair p, output o) holds w[o][2p] and w[o][2p + 1].
//
// A tile of up to six rows and four panels is summed in registers over all inputs, one pair after
// the other; one or two panels that stand alone in four chains, as so few sums would wait for each
// other. So an output's bits are a function of its row and its weights, whatever rows stand beside
// it: on which it rests that a draft's verification gives what plain decoding would.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "memory.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kPanel = 16;       // outputs of a panel
constexpr std::size_t kGroup = 4;        // panels that stand together
constexpr std::size_t kGroupOutputs = kGroup * kPanel;
constexpr std::size_t kCacheLine = 64;   // bytes

// Sixteen dwords, one of each of up to sixteen rows that lie `stride` bytes apart; 0 beyond those.
QM_INLINE I16 take_column(const void* first, std::size_t stride, std::size_t num_rows) {
    const I16 offsets = mul(counting(), all_i32(std::int32_t(stride)));
    const Mask16 mask = num_rows >= kPanel ? 0xFFFF : (1u << num_rows) - 1;
    return gather(mask, offsets, first);
}

class Weight {
  public:
    Weight() = default;
    // from: [out, in] bfloat16, row after row. bias: [out] bfloat16, or null. The arena outlives it.
    // team: who shares the packing; null: the caller alone.
    Weight(Arena& arena, const Bf16* from, const Bf16* bias, std::size_t out, std::size_t in,
           Team* team = nullptr)
        : out_(out),
          pairs_((in + 1) / 2),
          panels_((out + kPanel - 1) / kPanel),
          data_(arena.take<std::uint32_t>(panels_ * pairs_ * kPanel)),
          bias_(bias == nullptr ? nullptr : arena.take<float>(panels_ * kPanel)) {
        for (std::size_t o = 0; bias != nullptr && o < out; ++o) bias_[o] = widen(bias[o]);
        const auto pack = [&](std::size_t first, std::size_t last) {
            for (std::size_t panel = first; panel < last; ++panel) pack_panel(from, panel, in);
        };
        if (team == nullptr) {
            pack(0, panels_);
        } else {
            team->share(panels_, pack);
        }
    }

    std::size_t out() const { return out_; }
    std::size_t row_size() const { return 2 * pairs_; }  // that x must have, zero behind `in`
    std::size_t num_groups() const { return (panels_ + kGroup - 1) / kGroup; }
    std::size_t num_bytes() const {
        const std::size_t num_biases = bias_ == nullptr ? 0 : panels_ * kPanel;
        return panels_ * pairs_ * kPanel * sizeof(std::uint32_t) + num_biases * sizeof(float);
    }
    bool is_empty() const { return out_ == 0; }

    std::uint32_t* group(std::size_t g) const { return data_ + g * kGroup * pairs_ * kPanel; }
    std::size_t group_width(std::size_t g) const { return std::min(kGroup, panels_ - g * kGroup); }
    std::size_t pairs() const { return pairs_; }
    const float* bias() const { return bias_; }

  private:
    QM_KERNEL void pack_panel(const Bf16* from, std::size_t panel, std::size_t in) {
        const std::size_t o = panel * kPanel, width = group_width(panel / kGroup);
        std::uint32_t* to = group(panel / kGroup) + panel % kGroup * kPanel;
        for (std::size_t p = 0; p < in / 2; ++p) {
            const I16 column = take_column(from + o * in + 2 * p, in * sizeof(Bf16), out_ - o);
            store_i(to + p * width * kPanel, column);
        }
        if (in % 2 == 0) return;
        for (std::size_t r = 0; r < std::min(kPanel, out_ - o); ++r) {
            to[in / 2 * width * kPanel + r] = from[(o + r) * in + in - 1];
        }
    }

    std::size_t out_ = 0, pairs_ = 0, panels_ = 0;
    std::uint32_t* data_ = nullptr;
    float* bias_ = nullptr;
};

// The weights that come next, fetched while others are multiplied, in as many shares as there are
// tiles of rows: all but the first tile find theirs in the cache, and memory would stand idle meanwhile.
class Ahead {
  public:
    // from: where the next panels begin; size: their bytes; lines: what a tile reads between two calls.
    Ahead(const void* from, std::size_t size, std::size_t lines, std::size_t tile, std::size_t num_tiles)
        : next_(static_cast<const char*>(from) + size * tile / num_tiles),
          end_(static_cast<const char*>(from) + size * (tile + 1) / num_tiles),
          step_((num_tiles < lines ? 2 : 1) * kCacheLine) {}

    QM_INLINE void fetch() {
        if (next_ >= end_) return;
        _mm_prefetch(next_, _MM_HINT_T1);
        _mm_prefetch(next_ + step_ - kCacheLine, _MM_HINT_T1);
        next_ += step_;
    }

  private:
    const char *next_, *end_;
    std::size_t step_;
};

// So many tiles of rows, and fewer, are quicker without on AMD's Zen 5: what is asked for by name waits in
// the first cache's few places for lines to come, and the processor's own looking ahead, which has more of
// them, is out of work. On Intel's Cascade Lake any are quicker with it, a single row by a tenth.
inline const bool kIsAmd = __builtin_cpu_is("amd");
inline const std::size_t kTilesUnaided = kIsAmd ? 2 : 0;
inline const std::size_t kIntTilesUnaided = kIsAmd ? 1 : 0;

// Where a product's sums go: a matrix of `stride` columns, set or added to.
struct Target {
    float* data;
    std::size_t stride;
    bool adds;
};

// Put a row's sums of one panel where they go; outputs behind the last are left out.
QM_INLINE void put_sums(F16 sum, std::size_t panel, const float* bias, const Target& to,
                               std::size_t row, std::size_t num_outputs) {
    const std::size_t first = panel * kPanel;
    const Mask16 mask = num_outputs >= first + kPanel ? 0xFFFF
                           : num_outputs > first ? (1u << (num_outputs - first)) - 1
                                                 : 0;
    float* out = to.data + row * to.stride + first;
    if (bias != nullptr) sum = add(sum, load(bias + first));
    if (to.adds) sum = add(sum, load_some(mask, out, none_f()));
    store_some(out, mask, sum);
}

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
// How many of the panels that stand together a tile of so many rows sums at a time.
constexpr int num_at_once(int width, int rows) { return kHas32Registers || rows == 1 ? width : 1; }

// Add the products of one pair of inputs.
template <int kRows, int kPanels>
QM_INLINE void add_pair(const std::uint32_t* weight, const Operand* x, std::size_t x_stride,
                               F16 (&sums)[kRows][kPanels]) {
    B32 columns[kPanels];
    QM_UNROLL
    for (int n = 0; n < kPanels; ++n) {
        columns[n] = as_pairs(load_i(weight + n * kPanel));
    }
    QM_UNROLL
    for (int r = 0; r < kRows; ++r) {
        const B32 both = pair_of(x + r * x_stride);
        QM_UNROLL
        for (int n = 0; n < kPanels; ++n) sums[r][n] = dot(sums[r][n], columns[n], both);
    }
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
