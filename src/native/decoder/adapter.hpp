// Low-rank adapters of one base, and their share in a step's rows: y += (x · Aᵀ) · Bᵀ.
//
// Each adapter works on its own rows, gathered unless they lie side by side; what it adds to a row does not
// depend on the others.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

#include "ranks.hpp"
#include "team.hpp"
#include "weight.hpp"

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
    Ranks down;  // [rank, in]
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
    // num_bytes: about what it takes. There may be hundreds that are smaller than a large page.
    explicit Adapter(std::size_t num_bytes) : arena(num_bytes >= kLarge) {}

    static constexpr std::size_t kLarge = std::size_t{8} << 20;
    Arena arena;
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
        make_room(layer, place, in);
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
    static constexpr std::size_t kManyParts = 4, kSharedRows = 16;

    // Memory for every row, as parts are worked on at the same time.
    void make_room(std::size_t layer, std::size_t place, std::size_t in) {
        starts_.clear();
        std::size_t num_rows = 0;
        padded_ = 0;
        for (const AdaptedRows& part : parts) {
            starts_.push_back(num_rows);
            num_rows += part.rows.size();
            const LowRank& low = part.adapter->layers[layer][place];
            padded_ = std::max(padded_, (low.down.count() + 15) / 16 * 16);
        }
        picked_.at_least(num_rows * in);
        inner_.at_least(num_rows * padded_);
        narrowed_.at_least(num_rows * padded_ + 16);
    }

    void add_part(Team& team, const LowRank& low, std::size_t index, const Operand* x, std::size_t in,
                  float* y, std::size_t out) {
        const std::vector<std::size_t>& rows = parts[index].rows;
        const std::size_t count = rows.size(), rank = low.down.count();
        const bool is_run = rows.back() - rows.front() + 1 == count;  // as of a prompt, or of one row
        const Operand* from = x + rows[0] * in;
        if (!is_run) {
            Operand* picked = picked_.data() + starts_[index] * in;
            for (std::size_t i = 0; i < count; ++i) {
                std::memcpy(picked + i * in, x + rows[i] * in, in * sizeof(Operand));
            }
            from = picked;
        }
        float* inner = inner_.data() + starts_[index] * padded_;
        const auto down = [&](std::size_t first, std::size_t last) {
            low.down.multiply(from + first * in, last - first, inner + first * padded_, padded_);
        };
        if (count < kSharedRows) {
            down(0, count);
        } else {
            team.share(count, down);
        }
        Operand* narrowed = narrowed_.data() + starts_[index] * padded_;
        for (std::size_t i = 0; i < count; ++i) {
            std::fill(inner + i * padded_ + rank, inner + (i + 1) * padded_, 0.0f);
            convert(inner + i * padded_, padded_, narrowed + i * padded_);
        }
        for (const Block& block : low.blocks) {
            const Operand* ranks = narrowed + block.first_rank;
            const auto up = [&](std::size_t first, std::size_t last) {
                add_up(block.up, first, last, ranks, padded_, rows, y + block.first, out);
            };
            if (count < kSharedRows) {
                up(0, block.up.num_groups());
            } else {
                team.share(block.up.num_groups(), up);
            }
        }
    }

    // The second product, of groups [first, last) of the outputs: a few pairs of inputs each, so that
    // it is over before multiply_groups would have begun.
    static void add_up(const Weight& weight, std::size_t first, std::size_t last, const Operand* ranks,
                       std::size_t stride, const std::vector<std::size_t>& rows, float* y, std::size_t out) {
        for (std::size_t g = first; g < last; ++g) {
            const std::size_t column = g * kGroupOutputs;
            const auto add = [&](auto width) {
                add_up_group<decltype(width)::value>(weight.group(g), weight.pairs(), ranks, stride, rows,
                                                     Target{y + column, out, true}, weight.out() - column);
            };
            switch (weight.group_width(g)) {
                case 1: add(std::integral_constant<int, 1>()); break;
                case 2: add(std::integral_constant<int, 2>()); break;
                case 3: add(std::integral_constant<int, 3>()); break;
                default: add(std::integral_constant<int, 4>());
            }
        }
    }

    template <int kWidth>
    QM_KERNEL static void add_up_group(const std::uint32_t* weight, std::size_t pairs, const Operand* ranks,
                                       std::size_t stride, const std::vector<std::size_t>& rows, const Target& to,
                                       std::size_t num_outputs) {
        std::size_t i = 0;
        if constexpr (kHas32Registers) {
            for (; i + 4 <= rows.size(); i += 4) {
                F16 sums[4][kWidth] = {};
                for (std::size_t p = 0; p < pairs; ++p) {
                    add_pair<4, kWidth>(weight + p * kWidth * kPanel, ranks + i * stride + 2 * p, stride, sums);
                }
                for (std::size_t r = 0; r < 4; ++r) {
                    for (int n = 0; n < kWidth; ++n) put_sums(sums[r][n], n, nullptr, to, rows[i + r], num_outputs);
                }
            }
        }
        for (; i < rows.size(); ++i) {
            F16 sums[1][kWidth] = {};
            for (std::size_t p = 0; p < pairs; ++p) {
                add_pair<1, kWidth>(weight + p * kWidth * kPanel, ranks + i * stride + 2 * p, stride, sums);
            }
            for (int n = 0; n < kWidth; ++n) put_sums(sums[0][n], n, nullptr, to, rows[i], num_outputs);
        }
    }

    Team alone_{1};
    std::vector<std::size_t> starts_;  // of each part, in rows
    std::size_t padded_ = 0;           // the largest rank, in whole lanes
    Scratch<Operand> picked_, narrowed_;
    Scratch<float> inner_;
};

}  // namespace quickmatch::QM_ISA
