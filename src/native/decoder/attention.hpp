// Attention of a step's rows over the paged keys and values: decodes, drafts and prompts alike.
//
// A row sees the tokens before its span, and of its span those before it, itself included; a draft's
// node only its ancestors. Up to sixteen queries of one span and key head share a pass over the chunks:
// scores of all their tokens first, then the weights, then the sum of the values, four chunks at a
// time, which stay in the first cache while all queries read them.
//
// A query's scores do not depend on where a token lies in its chunk. Its values are added up two
// tokens at a time, by their place in the text: those of a draft's branch, which lie apart, are taken
// up one by one. A token that it does not see adds an exact zero. So a node of a draft gets the bits
// that plain decoding would give the same token.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "int8_kv.hpp"
#include "paged_kv.hpp"
#include "rows.hpp"
#include "sight.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

struct Heads {
    std::size_t num_query, num_kv, dim;
    std::size_t group() const { return num_query / num_kv; }
};

constexpr std::size_t kTileQueries = 16;  // that share a pass over the chunks
constexpr std::size_t kQueriesAbreast = kHas32Registers ? 6 : 2;  // whose sums are in registers together

class Attention {
  public:
    explicit Attention(Heads heads) : heads_(heads) {}

    // queries: [rows, num_query * dim], unscaled. out: the same shape.
    template <typename KV>
    void run(Team& team, const KV& kv, const std::vector<Span>& spans, const Sight& sight,
             const Operand* queries, Operand* out) {
        items_.clear();
        for (const Span& span : spans) {
            const std::size_t num_queries = span.num_rows * heads_.group();
            for (std::size_t head = 0; head < heads_.num_kv; ++head) {
                for (std::size_t q = 0; q < num_queries; q += kTileQueries) {
                    items_.push_back({&span, head, q, std::min(kTileQueries, num_queries - q)});
                }
            }
        }
        team.share(items_.size(), [&](std::size_t first, std::size_t last) {
            thread_local Tile tile;
            thread_local Scratch<float> scratch;
            for (std::size_t i = first; i < last; ++i) {
                run_item(items_[i], kv, sight, queries, out, tile, scratch);
            }
        });
    }

  private:
    struct Item {
        const Span* span;
        std::size_t head, first, count;  // queries first .. first + count of the span's rows × group
    };
    struct Query {
        const Operand* from;
        Operand* to;
        const View* view;
    };
    // What a tile of queries works on. Tokens of a row's scores count from chunk `first`.
    struct Tile {
        Query asked[kTileQueries];
        std::size_t count, head;
        const std::uint32_t* chunks;
        std::size_t first, last, high;    // chunks; tokens that any query sees end before high
        std::size_t all_from, all_until;  // tokens that all queries see, but for a draft's
        std::size_t width;                // tokens of a row of scores, a multiple of 32
        float* scores;                    // [queries, width], and in their place the weights
        float* sums;                      // [queries, dim]
        float totals[kTileQueries];       // of the weights
        // Tokens that lie apart from their place in the text, and their weights.
        std::vector<std::uint32_t> places[kTileQueries];
        std::vector<Operand> tails[kTileQueries];

        // Parts as equal as can be, whose queries have their sums in registers together.
        std::size_t num_parts() const { return (count + kQueriesAbreast - 1) / kQueriesAbreast; }
        std::size_t part(std::size_t index) const { return count * index / num_parts(); }

        Operand* weights(std::size_t q) const { return reinterpret_cast<Operand*>(scores + q * width); }
    };

    template <typename KV>
    void run_item(const Item& item, const KV& kv, const Sight& sight, const Operand* queries, Operand* out, Tile& tile,
                  Scratch<float>& scratch) const {
        std::size_t low = std::numeric_limits<std::size_t>::max();
        const std::size_t group = heads_.group(), stride = heads_.num_query * heads_.dim;
        tile.count = item.count;
        tile.head = item.head;
        tile.chunks = item.span->chunks.data();
        tile.high = tile.all_from = 0;
        tile.all_until = low;
        for (std::size_t i = 0; i < item.count; ++i) {
            const std::size_t q = item.first + i, row = item.span->start + q / group;
            const std::size_t column = (item.head * group + q % group) * heads_.dim;
            const View& view = sight.views[row];
            tile.asked[i] = {queries + row * stride + column, out + row * stride + column, &view};
            low = std::min(low, view.low);
            tile.high = std::max(tile.high, view.high);
            tile.all_from = std::max(tile.all_from, view.low);
            tile.all_until = std::min(tile.all_until, view.marks == kNoTree ? view.high : view.context);
        }
        tile.first = low / kChunk / 2 * 2;  // even, as weights are added up by thirty-two
        tile.last = (tile.high + kChunk - 1) / kChunk;
        tile.width = (tile.last - tile.first + 1) / 2 * 2 * kChunk;
        const std::size_t num_scores = item.count * tile.width;
        tile.scores = scratch.at_least(num_scores + item.count * heads_.dim);
        tile.sums = tile.scores + num_scores;
        score_all(kv, tile, sight);
        for (std::size_t q = 0; q < tile.count; ++q) weigh(tile, q, sight);
        add_all(kv, tile);
        for (std::size_t q = 0; q < tile.count; ++q) finish(tile, q);
    }

    template <typename KV>
    void score_all(const KV& kv, Tile& tile, const Sight& sight) const {
        typename KV::Query queries[kTileQueries];
        for (std::size_t q = 0; q < tile.count; ++q) kv.prepare(tile.asked[q].from, queries[q]);
        for (std::size_t c = tile.first; c < tile.last; c += kAbreast) {
            for (std::size_t part = 0; part < tile.num_parts(); ++part) {
                const std::size_t q = tile.part(part);
                switch (tile.part(part + 1) - q) {
                    case 1: score<1>(kv, tile, c, q, queries + q, sight); break;
                    case 2: score<2>(kv, tile, c, q, queries + q, sight); break;
                    case 3: score<3>(kv, tile, c, q, queries + q, sight); break;
                    case 4: score<4>(kv, tile, c, q, queries + q, sight); break;
                    case 5: score<5>(kv, tile, c, q, queries + q, sight); break;
                    default: score<6>(kv, tile, c, q, queries + q, sight);
                }
            }
        }
    }

    // Scores of chunks c .. c + kAbreast for some queries; -inf for what they do not see.
    template <int kQueries, typename KV>
    QM_KERNEL void score(const KV& kv, const Tile& tile, std::size_t c, std::size_t q0,
                         const typename KV::Query* queries, const Sight& sight) const {
        // The last chunk is scored twice where their number is odd: the same scores.
        std::size_t now[kAbreast];
        const char* ahead[kAbreast];
        const bool is_end = c + kAbreast >= tile.last;
        for (std::size_t i = 0; i < kAbreast; ++i) {
            now[i] = tile.chunks[std::min(c + i, tile.last - 1)];
            const std::size_t next = is_end ? tile.first + i : c + kAbreast + i;
            const std::uint32_t chunk = tile.chunks[std::min(next, tile.last - 1)];
            ahead[i] = is_end ? reinterpret_cast<const char*>(kv.values(chunk, tile.head))
                              : reinterpret_cast<const char*>(kv.keys(chunk, tile.head));
        }
        F16 sums[kAbreast][kQueries];
        kv.template score<kQueries>(tile.head, now, ahead, queries, sums);
        const F16 hidden = all(-std::numeric_limits<float>::infinity());
        const bool sees_all = c * kChunk >= tile.all_from && (c + kAbreast) * kChunk <= tile.all_until;
        for (std::size_t i = 0; i < kAbreast && c + i < tile.last; ++i) {
            float* to = tile.scores + (c + i - tile.first) * kChunk;
            QM_UNROLL
            for (int q = 0; q < kQueries; ++q) {
                const Mask16 mask = sees_all ? Mask16(0xFFFF) : sight.seen(*tile.asked[q0 + q].view, c + i);
                store(to + (q0 + q) * tile.width, choose(mask, hidden, sums[i][q]));
            }
        }
    }

    // From a query's scores to its weights, and their total.
    QM_KERNEL void weigh(Tile& tile, std::size_t q, const Sight& sight) const {
        // Powers of two are taken instead of e's, with the factor in the scale.
        const F16 scale = all(1.44269504f / std::sqrt(static_cast<float>(heads_.dim)));
        const std::size_t num_tokens = (tile.last - tile.first) * kChunk;
        const float* scores = tile.scores + q * tile.width;
        F16 largest = load(scores);
        for (std::size_t i = kChunk; i < num_tokens; i += kChunk) {
            largest = larger(largest, load(scores + i));
        }
        const F16 top = mul(all(largest_of(largest)), scale);
        Operand* weights = tile.weights(q);
        for (std::size_t i = 0; i < tile.width; i += 2 * kChunk) {
            const F16 low = exp2_16(fms(load(scores + i), scale, top));
            F16 high = none_f();
            if (i + kChunk < num_tokens) {
                high = exp2_16(fms(load(scores + i + kChunk), scale, top));
            }
            put32(weights + i, low, high);
        }
        tile.places[q].clear();
        if (tile.asked[q].view->marks != kNoTree) find_branch(tile, q, sight);
        put_branch(tile, q);
        tile.totals[q] = total_of(weights, tile.width);
        take_branch(tile, q);
    }

    // Note the places of the tokens behind the context if they are not those of the text.
    void find_branch(Tile& tile, std::size_t q, const Sight& sight) const {
        const View& view = *tile.asked[q].view;
        std::vector<std::uint32_t>& places = tile.places[q];
        if (view.context % 2 == 1) places.push_back(std::uint32_t(view.context - 1));
        for (std::size_t at = view.context; at < view.high; ++at) {
            if (sight.seen(view, at / kChunk) >> at % kChunk & 1) places.push_back(std::uint32_t(at));
        }
        const std::size_t start = view.context / 2 * 2;
        if (places.empty() || places.back() + 1 == start + places.size()) places.clear();
    }

    // Put a branch's weights where plain decoding has them...
    void put_branch(Tile& tile, std::size_t q) const {
        std::vector<Operand>& tail = tile.tails[q];
        tail.clear();
        if (tile.places[q].empty()) return;
        Operand* weights = tile.weights(q);
        const std::size_t origin = tile.first * kChunk;
        for (const std::uint32_t place : tile.places[q]) tail.push_back(weights[place - origin]);
        const std::size_t start = tile.asked[q].view->context / 2 * 2 - origin;
        std::fill(weights + start, weights + tile.width, Operand{0});
        std::copy(tail.begin(), tail.end(), weights + start);
    }

    // ...and take them out again: what lies there is not what they weigh.
    void take_branch(Tile& tile, std::size_t q) const {
        if (tile.places[q].empty()) return;
        const std::size_t start = tile.asked[q].view->context / 2 * 2 - tile.first * kChunk;
        std::fill_n(tile.weights(q) + start, tile.places[q].size(), Operand{0});
    }

    QM_KERNEL static float total_of(const Operand* weights, std::size_t width) {
        F16 total = none_f();
        for (std::size_t i = 0; i < width; i += kChunk) total = add(total, take16(weights + i));
        return sum_of(total);
    }

    template <typename KV>
    void add_all(const KV& kv, Tile& tile) const {
        const std::size_t dim = heads_.dim;
        std::fill_n(tile.sums, tile.count * dim, 0.0f);
        // Few queries take all chunks at once, their sums in registers.
        const std::size_t each = tile.num_parts() == 1 ? tile.last - tile.first : kAbreast;
        for (std::size_t c = tile.first; c < tile.last; c += each) {
            const std::size_t end = std::min(c + each, tile.last);
            for (std::size_t part = 0; part < tile.num_parts(); ++part) {
                const std::size_t q = tile.part(part);
                switch (tile.part(part + 1) - q) {
                    case 1: add_values<1>(kv, tile, c, end, q); break;
                    case 2: add_values<2>(kv, tile, c, end, q); break;
                    case 3: add_values<3>(kv, tile, c, end, q); break;
                    case 4: add_values<4>(kv, tile, c, end, q); break;
                    case 5: add_values<5>(kv, tile, c, end, q); break;
                    default: add_values<6>(kv, tile, c, end, q);
                }
            }
        }
        for (std::size_t q = 0; q < tile.count; ++q) {
            const std::vector<std::uint32_t>& places = tile.places[q];
            for (std::size_t i = 0; i < places.size(); i += 2) {
                const bool has_second = i + 1 < places.size();
                const Token first{tile.chunks[places[i] / kChunk], places[i] % kChunk, tile.tails[q][i]};
                Token second = first;
                second.weight = 0;
                if (has_second) {
                    second = {tile.chunks[places[i + 1] / kChunk], places[i + 1] % kChunk, tile.tails[q][i + 1]};
                }
                kv.add_two(tile.head, first, second, tile.sums + q * dim);
            }
        }
    }

    template <int kQueries, typename KV>
    void add_values(const KV& kv, const Tile& tile, std::size_t c, std::size_t end, std::size_t q) const {
        for (std::size_t d = 0; d < heads_.dim; d += 64) {
            const Chunks some{tile.chunks, c, end, tile.last, tile.high};
            const Operand* weights = tile.weights(q) + (c - tile.first) * kChunk;
            float* sums = tile.sums + q * heads_.dim + d;
            // A row of weights is as long as one of scores, which are float32.
            const std::size_t stride = tile.width * sizeof(float) / sizeof(Operand);
            if (heads_.dim - d >= 64) {
                kv.template add_values<kQueries, 4>(tile.head, some, d, weights, stride, sums);
            } else {
                kv.template add_values<kQueries, 2>(tile.head, some, d, weights, stride, sums);
            }
        }
    }

    QM_KERNEL void finish(const Tile& tile, std::size_t q) const {
        const F16 total = all(tile.totals[q]);
        for (std::size_t d = 0; d < heads_.dim; d += 16) {
            const F16 sum = load(tile.sums + q * heads_.dim + d);
            put16(tile.asked[q].to + d, div(sum, total));
        }
    }

    Heads heads_;
    std::vector<Item> items_;
};

}  // namespace quickmatch::QM_ISA
