// Low-rank adapters of one base, and their share in a step's rows: y += (x · Aᵀ) · Bᵀ.
//
// Each adapter works on its own rows, gathered; what it adds to a row does not depend on the others.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <vector>

#include "product.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kNumPlaces = 4;  // qkv, o, gate_up, down: the products of a layer

// Outputs [first, first + up.out()) of a product, which some of the ranks add to.
struct Block {
    std::size_t first, first_rank;
    Weight up;  // [outputs, ranks], the scaling in it
};

// Adapters of several matrices that are one product here: all their ranks, and for each of the
// matrices its own block.
struct LowRank {
    Weight down;  // [rank, in]
    std::vector<Block> blocks;

    std::size_t num_bytes() const {
        std::size_t total = down.num_bytes();
        for (const Block& block : blocks) total += block.up.num_bytes();
        return total;
    }
};

// up: [out, rank] bfloat16. ends: where the outputs of each matrix end. Ranks that are all zero for a
// matrix are another's, or nobody's.
inline std::vector<Block> blocks_of(Arena& arena, const Bf16* up, const std::vector<std::size_t>& ends,
                                    std::size_t rank) {
    std::vector<Block> blocks;
    std::size_t first = 0;
    for (const std::size_t end : ends) {
        std::size_t low = rank, high = 0;
        for (std::size_t o = first; o < end; ++o) {
            for (std::size_t k = 0; k < rank; ++k) {
                if ((up[o * rank + k] & 0x7FFF) == 0) continue;
                low = std::min(low, k);
                high = std::max(high, k + 1);
            }
        }
        if (low < high) {
            std::vector<Bf16> own((end - first) * (high - low));
            for (std::size_t o = first; o < end; ++o) {
                std::copy(up + o * rank + low, up + o * rank + high, own.data() + (o - first) * (high - low));
            }
            blocks.push_back({first, low, Weight(arena, own.data(), nullptr, end - first, high - low)});
        }
        first = end;
    }
    return blocks;
}

struct Adapter {
    Arena arena{false};  // there may be hundreds, each smaller than a large page
    std::vector<std::array<LowRank, kNumPlaces>> layers;
    std::size_t num_bytes() const {
        std::size_t total = 0;
        for (const auto& layer : layers) {
            for (const auto& low : layer) total += low.num_bytes();
        }
        return total;
    }
};

// The rows of a step that use one adapter.
struct AdaptedRows {
    const Adapter* adapter;
    std::vector<std::size_t> rows;
};

class AdapterStep {
  public:
    std::vector<AdaptedRows> parts;

    // x: [rows, in]; y: [rows, out], added to. Many adapters are shared among the threads,
    // a few have the threads share each of their products.
    void add(Team& team, std::size_t layer, std::size_t place, const Operand* x, std::size_t in,
             float* y, std::size_t out) {
        if (parts.empty()) return;
        make_room(layer, place, in, out);
        const auto some = [&](Team& own, std::size_t first, std::size_t last) {
            for (std::size_t i = first; i < last; ++i) {
                const LowRank& low = parts[i].adapter->layers[layer][place];
                if (!low.down.is_empty()) add_part(own, low, i, x, in, y, out);
            }
        };
        if (parts.size() < kManyParts) {
            some(team, 0, parts.size());
        } else {
            team.share(parts.size(), [&](std::size_t first, std::size_t last) { some(alone_, first, last); });
        }
    }

  private:
    static constexpr std::size_t kManyParts = 4;

    // Memory for every row, as parts are worked on at the same time.
    void make_room(std::size_t layer, std::size_t place, std::size_t in, std::size_t out) {
        starts_.clear();
        std::size_t num_rows = 0;
        padded_ = 0;
        for (const AdaptedRows& part : parts) {
            starts_.push_back(num_rows);
            num_rows += part.rows.size();
            const LowRank& low = part.adapter->layers[layer][place];
            padded_ = std::max(padded_, (low.down.out() + 15) / 16 * 16);
        }
        picked_.at_least(num_rows * in);
        inner_.at_least(num_rows * padded_);
        narrowed_.at_least(num_rows * padded_ + 16);
        added_.at_least(num_rows * out);
    }

    void add_part(Team& team, const LowRank& low, std::size_t index, const Operand* x, std::size_t in,
                  float* y, std::size_t out) {
        const std::vector<std::size_t>& rows = parts[index].rows;
        const std::size_t count = rows.size(), rank = low.down.out();
        const Operand* from = x + rows[0] * in;
        if (count > 1) {
            Operand* picked = picked_.data() + starts_[index] * in;
            for (std::size_t i = 0; i < count; ++i) {
                std::memcpy(picked + i * in, x + rows[i] * in, in * sizeof(Operand));
            }
            from = picked;
        }
        float* inner = inner_.data() + starts_[index] * padded_;
        multiply(team, low.down, from, count, Target{inner, padded_, false});
        Operand* narrowed = narrowed_.data() + starts_[index] * padded_;
        for (std::size_t i = 0; i < count; ++i) {
            std::fill(inner + i * padded_ + rank, inner + (i + 1) * padded_, 0.0f);
            convert(inner + i * padded_, padded_, narrowed + i * padded_);
        }
        float* added = added_.data() + starts_[index] * out;
        for (const Block& block : low.blocks) {
            const Operand* ranks = narrowed + block.first_rank;
            if (count == 1) {
                float* to = y + rows[0] * out + block.first;
                multiply(team, block.up, ranks, padded_, 1, Target{to, out, true});
                continue;
            }
            multiply(team, block.up, ranks, padded_, count, Target{added + block.first, out, false});
            for (std::size_t i = 0; i < count; ++i) {
                add_row(added + i * out + block.first, block.up.out(), y + rows[i] * out + block.first);
            }
        }
    }

    QM_KERNEL static void add_row(const float* from, std::size_t size, float* to) {
        for (std::size_t k = 0; k < size; ++k) to[k] += from[k];
    }

    Team alone_{1};
    std::vector<std::size_t> starts_;  // of each part, in rows
    std::size_t padded_ = 0;           // the largest rank, in whole lanes
    Scratch<Operand> picked_, narrowed_;
    Scratch<float> inner_, added_;
};

}  // namespace quickmatch::QM_ISA
