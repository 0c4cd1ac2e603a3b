// Low-rank adapters of one base, and their share in a step's rows: y += (x · Aᵀ) · Bᵀ.
//
// Each adapter works on its own rows; what it adds to a row does not depend on the others. The first
// product is made before the base's, the second as soon as the base has some outputs, while they are in
// the cache.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "rank_outputs.hpp"
#include "ranks.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kNumPlaces = 4;  // qkv, o, gate_up, down: the products of a layer

// Adapters of several matrices that are one product here: all their ranks, and for each of the
// matrices its own outputs.
struct LowRank {
    std::vector<float> scales;        // of the sums of each rank, 0 behind the last; none of bfloat16
    Ranks down;                       // [ranks, in]
    std::vector<RankOutputs> blocks;  // [outputs, ranks], the scaling in it

    LowRank() = default;
    // downs: [num_ranks, in], ups: [out, num_ranks] bfloat16. ends: where the outputs of each matrix end.
    // Ranks that are all zero for a matrix are another's, or nobody's.
    LowRank(Arena& arena, const Bf16* downs, const Bf16* ups, const std::vector<std::size_t>& ends,
            std::size_t num_ranks, std::size_t in, bool in_bytes)
        : scales(in_bytes ? (num_ranks + 15) / 16 * 16 : 0),
          down(arena, downs, num_ranks, in, in_bytes ? scales.data() : nullptr) {
        std::vector<RankBlock> found;
        std::vector<float> of_ups(num_ranks);
        std::size_t first = 0;
        for (const std::size_t end : ends) {
            std::vector<Bf16> most(num_ranks);  // of each rank, without its sign: ordered as its bits are
            for (std::size_t o = first; o < end; ++o) {
                for (std::size_t k = 0; k < num_ranks; ++k) {
                    most[k] = std::max(most[k], Bf16(ups[o * num_ranks + k] & 0x7FFF));
                }
            }
            RankBlock block{first, end, num_ranks, 0};
            for (std::size_t k = 0; k < num_ranks; ++k) {
                if (most[k] == 0) continue;
                block.first_rank = std::min(block.first_rank, k);
                block.last_rank = k + 1;
                of_ups[k] = std::max(of_ups[k], widen(most[k]) / 127);
            }
            if (block.first_rank < block.last_rank) found.push_back(block);
            first = end;
        }
        for (const RankBlock& block : found) {
            blocks.emplace_back(arena, ups, num_ranks, block, in_bytes ? of_ups.data() : nullptr);
        }
        if (in_bytes) {
            for (std::size_t k = 0; k < num_ranks; ++k) scales[k] *= of_ups[k];
        }
    }

    std::size_t num_bytes() const {
        std::size_t total = down.num_bytes() + scales.size() * sizeof(float);
        for (const RankOutputs& block : blocks) total += block.num_bytes();
        return total;
    }
};

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

    // How many groups of outputs to compute before `add`. Of few rows many: each adapter is then read in
    // long runs. Of many rows as few as fit the cache.
    std::size_t groups_at_once(std::size_t rows) const {
        return parts.empty() ? 1 : std::max<std::size_t>(1, kCached / (rows * kGroupOutputs * sizeof(float)));
    }

    // The first products of a place, of x: [rows, in]. Many adapters are shared among the threads; of a
    // few, the rows are.
    void start(Team& team, std::size_t layer, std::size_t place, const Operand* x, std::size_t in) {
        works_.clear();
        std::size_t size = 0, num_rows = 0;
        for (const AdaptedRows& part : parts) {
            const LowRank& low = part.adapter->layers[layer][place];
            if (low.down.is_empty()) continue;
            works_.push_back({&low, &part.rows, size, num_rows});
            size += part.rows.size() * low.down.stride();
            num_rows += part.rows.size();
        }
        sums_.at_least(size);
        ranks_.at_least(size + 16);  // a pair's second may be read behind the last
        rank_words_.at_least(size + 16);
        scales_.at_least(num_rows);
        words_.at_least(num_rows * in + 16);
        if (works_.size() >= kManyParts) {
            team.share(works_.size(), [&](std::size_t first, std::size_t last) {
                for (std::size_t i = first; i < last; ++i) sum(i, x, in, 0, works_[i].rows->size());
            });
            return;
        }
        for (std::size_t i = 0; i < works_.size(); ++i) {
            const std::size_t count = works_[i].rows->size();
            const auto some = [&](std::size_t first, std::size_t last) { sum(i, x, in, first, last); };
            if (count < kSharedRows) {
                some(0, count);
            } else {
                team.share(count, some);
            }
        }
    }

    // The second products of the place that was started: added to outputs [first, last), multiples of 16,
    // of y: [rows, stride]. Any thread may.
    void add(std::size_t first, std::size_t last, float* y, std::size_t stride) const {
        for (std::size_t i = 0; i < works_.size(); ++i) {
            const Work& work = works_[i];
            const RankSums sums{work.low->down.stride(), ranks_.data() + work.start,
                                rank_words_.data() + work.start, scales_.data() + work.first_row};
            for (std::size_t b = 0; b < work.low->blocks.size(); ++b) {
                const bool has_next = i + 1 < works_.size() && b < works_[i + 1].low->blocks.size();
                work.low->blocks[b].add_to(first, last, sums, *work.rows, Target{y, stride, true},
                                           has_next ? &works_[i + 1].low->blocks[b] : nullptr);
            }
        }
    }

  private:
    static constexpr std::size_t kManyParts = 4, kSharedRows = 16;
    static constexpr std::size_t kCached = std::size_t{256} << 10;  // bytes of outputs

    // What one part has to do at a place; its ranks' numbers begin at `start`, its rows at `first_row`.
    struct Work {
        const LowRank* low;
        const std::vector<std::size_t>* rows;
        std::size_t start, first_row;
    };

    // Of a part's rows [first, last).
    void sum(std::size_t index, const Operand* x, std::size_t in, std::size_t first, std::size_t last) {
        const Work& work = works_[index];
        const Ranks& down = work.low->down;
        const std::size_t stride = down.stride(), start = work.start + first * stride, count = last - first;
        const std::size_t* rows = work.rows->data() + first;
        float* sums = sums_.data() + start;
        if (!down.holds_bytes()) {
            down.multiply(x, rows, count, sums);
            convert(sums, count * stride, ranks_.data() + start);
            return;
        }
        float* scales = scales_.data() + work.first_row + first;
        std::int16_t* words = words_.data() + (work.first_row + first) * in;
        for (std::size_t r = 0; r < count; ++r) {
            scales[r] = round_to_words(x + rows[r] * in, nullptr, in, down.largest_word(), words + r * in);
        }
        down.multiply(words, count, sums);
        for (std::size_t r = 0; r < count; ++r) {
            scales[r] *= round_to_words(sums + r * stride, work.low->scales.data(), stride, largest_word(stride),
                                        rank_words_.data() + start + r * stride);
        }
    }

    std::vector<Work> works_;
    Scratch<float> sums_, scales_;
    Scratch<Operand> ranks_;
    Scratch<std::int16_t> words_, rank_words_;  // of x, and of what its ranks come to
};

}  // namespace quickmatch::QM_ISA
