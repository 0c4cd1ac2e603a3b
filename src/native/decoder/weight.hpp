// A weight of bfloat16 as its product reads it, and where sums go.
//
// A weight [out, in] is cut into panels of 16 outputs, and four panels stand together, so that a
// step reads the whole weight as one stream. Within them, pairs of inputs are the unit of AVX-512's
// bfloat16 product: dword (pair p, output o) holds w[o][2p] and w[o][2p + 1]. Sixteen pairs of a panel
// are a tile of AMX as they lie.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

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

}  // namespace quickmatch::QM_ISA
