// Attention of a step's rows over the paged keys and values: decodes, drafts and prompts alike.
//
// A row sees the tokens before its span, and of its span those before it, itself included; a draft's
// node only its ancestors. Up to four queries of one span and key head share a pass over the chunks:
// scores of all their tokens first, then the weights, then the sum of the values.
//
// A query's scores do not depend on where a token lies in its chunk, and its values are added up
// token after token; a token that it does not see adds an exact zero. So a node of a draft gets the
// bits that plain decoding would give the same token.
#pragma once

#include "isa.hpp"

#if QM_HAS_DECODER
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "int8_kv.hpp"
#include "paged_kv.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace quickmatch::decoder {

// The new tokens of one sequence.
struct Span {
    std::size_t start;       // row of its first token
    std::size_t num_rows;
    std::size_t context;     // tokens stored before it
    std::size_t tree_start;  // first of its rows' parents; kNoTree: a plain span
    std::vector<std::uint32_t> chunks;  // where its tokens lie, sixteen each
};
constexpr std::size_t kNoTree = static_cast<std::size_t>(-1);

// What one row of a step sees: tokens [low, high), and of those behind `context` only the marked.
struct View {
    std::size_t low, high;
    std::size_t context;         // all tokens before this are seen
    std::size_t marks = kNoTree;  // into the marks of the step; kNoTree: all before high are seen
};

struct Heads {
    std::size_t num_query, num_kv, dim;
    std::size_t group() const { return num_query / num_kv; }
};

constexpr std::size_t kTileQueries = 4;
constexpr std::size_t kLine = 64;    // bytes of the cache's unit: one pair of a chunk's keys
constexpr std::size_t kAbreast = 4;  // chunks scored at a time: sums that do not wait for each other

class Attention {
  public:
    explicit Attention(Heads heads) : heads_(heads) {}

    // queries: [rows, num_query * dim] bfloat16, unscaled. out: the same shape.
    template <typename KV>
    void run(Team& team, const KV& kv, const std::vector<Span>& spans,
             const std::vector<View>& views, const std::vector<std::uint16_t>& marks,
             const Bf16* queries, Bf16* out) {
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
            thread_local Scratch<float> scratch;
            for (std::size_t i = first; i < last; ++i) {
                run_item(items_[i], kv, views, marks, queries, out, scratch);
            }
        });
    }

  private:
    struct Item {
        const Span* span;
        std::size_t head, first, count;  // queries first .. first + count of the span's rows × group
    };
    struct Query {
        const Bf16* from;
        Bf16* to;
        const View* view;
    };

    template <typename KV>
    void run_item(const Item& item, const KV& kv, const std::vector<View>& views,
                  const std::vector<std::uint16_t>& marks, const Bf16* queries, Bf16* out,
                  Scratch<float>& scratch) const {
        Query asked[kTileQueries];
        std::size_t low = std::numeric_limits<std::size_t>::max(), high = 0;
        const std::size_t group = heads_.group(), stride = heads_.num_query * heads_.dim;
        for (std::size_t i = 0; i < item.count; ++i) {
            const std::size_t q = item.first + i, row = item.span->start + q / group;
            const std::size_t column = (item.head * group + q % group) * heads_.dim;
            asked[i] = {queries + row * stride + column, out + row * stride + column, &views[row]};
            low = std::min(low, views[row].low);
            high = std::max(high, views[row].high);
        }
        const std::size_t first = low / kChunk, last = (high + kChunk - 1) / kChunk;
        float* scores = scratch.at_least(kTileQueries * (last - first) * kChunk);
        const std::uint32_t* chunks = item.span->chunks.data();
        switch (item.count) {
            case 1: attend<1>(kv, item.head, chunks, first, last, high, asked, marks, scores); break;
            case 2: attend<2>(kv, item.head, chunks, first, last, high, asked, marks, scores); break;
            case 3: attend<3>(kv, item.head, chunks, first, last, high, asked, marks, scores); break;
            default: attend<4>(kv, item.head, chunks, first, last, high, asked, marks, scores);
        }
    }

    // Which of a chunk's tokens a row sees.
    static __mmask16 seen(const View& view, std::size_t chunk,
                          const std::vector<std::uint16_t>& marks) {
        const std::size_t start = chunk * kChunk;
        unsigned mask = 0xFFFF;
        if (view.marks != kNoTree && start + kChunk > view.context) {
            mask = marks[view.marks + chunk - view.context / kChunk];
        }
        if (start + kChunk > view.high) {
            mask &= view.high <= start ? 0u : (1u << (view.high - start)) - 1;
        }
        if (start < view.low) mask &= ~((1u << std::min(view.low - start, kChunk)) - 1);
        return static_cast<__mmask16>(mask);
    }

    // What the products of a chunk's keys read of a query.
    struct Bf16Query {
        const Bf16* from;
    };
    static void prepare(const PagedKV&, const Bf16* from, std::size_t, Bf16Query& to) { to.from = from; }
    static void prepare(const Int8KV&, const Bf16* from, std::size_t dim, RoundedHead& to) {
        round_head(from, dim, to);
    }
    static Bf16Query prepared_for(const PagedKV&) { return {}; }
    static RoundedHead prepared_for(const Int8KV&) { return {}; }

    // Products of kAbreast chunks' keys with the queries. ahead: what is read next, as long as they.
    template <int kQueries>
    QM_AVX512_INLINE void score(const PagedKV& kv, std::size_t head, const std::size_t* chunks,
                                const char* const* ahead, const Bf16Query* queries,
                                __m512 (&sums)[kAbreast][kQueries]) const {
        const std::uint32_t* keys[kAbreast];
        QM_UNROLL
        for (std::size_t i = 0; i < kAbreast; ++i) {
            keys[i] = kv.keys(chunks[i], head);
            QM_UNROLL
            for (int q = 0; q < kQueries; ++q) sums[i][q] = _mm512_setzero_ps();
        }
        for (std::size_t p = 0; p < heads_.dim / 2; ++p) {
            QM_UNROLL
            for (std::size_t i = 0; i < kAbreast; ++i) {
                _mm_prefetch(ahead[i] + p * kLine, _MM_HINT_T0);
                const auto key = reinterpret_cast<__m512bh>(_mm512_load_si512(keys[i] + p * kChunk));
                QM_UNROLL
                for (int q = 0; q < kQueries; ++q) {
                    std::int32_t pair;
                    std::memcpy(&pair, queries[q].from + 2 * p, sizeof pair);
                    const auto both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
                    sums[i][q] = _mm512_dpbf16_ps(sums[i][q], key, both);
                }
            }
        }
    }

    template <int kQueries>
    QM_AVX512_INLINE void score(const Int8KV& kv, std::size_t head, const std::size_t* chunks,
                                const char* const* ahead, const RoundedHead* queries,
                                __m512 (&sums)[kAbreast][kQueries]) const {
        const std::uint8_t* keys[kAbreast];
        __m512i whole[kAbreast][kQueries];
        QM_UNROLL
        for (std::size_t i = 0; i < kAbreast; ++i) {
            keys[i] = kv.keys(chunks[i], head);
            QM_UNROLL
            for (int q = 0; q < kQueries; ++q) whole[i][q] = _mm512_set1_epi32(-128 * queries[q].sum);
        }
        for (std::size_t p = 0; p < heads_.dim / 4; ++p) {
            QM_UNROLL
            for (std::size_t i = 0; i < kAbreast; ++i) {
                _mm_prefetch(ahead[i] + p * kLine, _MM_HINT_T0);
                const __m512i key = _mm512_load_si512(keys[i] + p * 4 * kChunk);
                QM_UNROLL
                for (int q = 0; q < kQueries; ++q) {
                    std::int32_t four;
                    std::memcpy(&four, queries[q].codes + 4 * p, sizeof four);
                    whole[i][q] = _mm512_dpbusd_epi32(whole[i][q], key, _mm512_set1_epi32(four));
                }
            }
        }
        QM_UNROLL
        for (std::size_t i = 0; i < kAbreast; ++i) {
            const __m512 scales = _mm512_load_ps(kv.key_scales(chunks[i], head));
            QM_UNROLL
            for (int q = 0; q < kQueries; ++q) {
                const __m512 both = _mm512_mul_ps(scales, _mm512_set1_ps(queries[q].scale));
                sums[i][q] = _mm512_mul_ps(_mm512_cvtepi32_ps(whole[i][q]), both);
            }
        }
    }

    template <int kQueries, typename KV>
    QM_AVX512 void attend(const KV& kv, std::size_t head, const std::uint32_t* chunks,
                          std::size_t first, std::size_t last, std::size_t high,
                          const Query* asked, const std::vector<std::uint16_t>& marks,
                          float* scores) const {
        const std::size_t dim = heads_.dim, width = (last - first) * kChunk;
        const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(dim)));
        const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        __m512 largest[kQueries];
        decltype(prepared_for(kv)) queries[kQueries];
        for (int q = 0; q < kQueries; ++q) {
            largest[q] = hidden;
            prepare(kv, asked[q].from, dim, queries[q]);
        }
        for (std::size_t c = first; c < last; c += kAbreast) {
            // The last chunk is scored twice where their number is odd: the same scores.
            std::size_t now[kAbreast];
            const char* ahead[kAbreast];
            for (std::size_t i = 0; i < kAbreast; ++i) {
                now[i] = chunks[std::min(c + i, last - 1)];
                const bool is_end = c + kAbreast >= last;
                const std::uint32_t next = chunks[std::min(is_end ? first + i : c + kAbreast + i, last - 1)];
                ahead[i] = is_end ? reinterpret_cast<const char*>(kv.values(next, head))
                                  : reinterpret_cast<const char*>(kv.keys(next, head));
            }
            __m512 sums[kAbreast][kQueries];
            score<kQueries>(kv, head, now, ahead, queries, sums);
            for (std::size_t i = 0; i < kAbreast && c + i < last; ++i) {
                QM_UNROLL
                for (int q = 0; q < kQueries; ++q) {
                    const __mmask16 mask = seen(*asked[q].view, c + i, marks);
                    const __m512 all = _mm512_mul_ps(sums[i][q], scale);
                    const __m512 kept = _mm512_mask_blend_ps(mask, hidden, all);
                    largest[q] = _mm512_max_ps(largest[q], kept);
                    _mm512_storeu_ps(scores + q * width + (c + i - first) * kChunk, kept);
                }
            }
        }
        for (int q = 0; q < kQueries; ++q) {
            const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest[q]));
            float* own = scores + q * width;
            for (std::size_t i = 0; i < width; i += kChunk) {
                _mm512_storeu_ps(own + i, exp16(_mm512_sub_ps(_mm512_loadu_ps(own + i), top)));
            }
        }
        for (std::size_t d = 0; d < dim; d += 64) {
            if (dim - d >= 64) {
                add_values<kQueries, 4>(kv, head, chunks, first, last, high, asked, d, scores);
            } else {
                add_values<kQueries, 2>(kv, head, chunks, first, last, high, asked, d, scores);
            }
        }
    }

    template <int kQueries, int kParts, typename KV>
    QM_AVX512 void add_values(const KV& kv, std::size_t head, const std::uint32_t* chunks,
                              std::size_t first, std::size_t last, std::size_t high,
                              const Query* asked, std::size_t offset, const float* scores) const {
        const std::size_t dim = heads_.dim, width = (last - first) * kChunk;
        __m512 sums[kQueries][kParts], weights[kQueries];
        QM_UNROLL
        for (int q = 0; q < kQueries; ++q) {
            weights[q] = _mm512_setzero_ps();
            QM_UNROLL
            for (int d = 0; d < kParts; ++d) sums[q][d] = _mm512_setzero_ps();
        }
        for (std::size_t c = first; c < last; ++c) {
            const typename KV::Value* values = kv.values(chunks[c], head) + offset;
            const float* own = scores + (c - first) * kChunk;
            const std::size_t count = std::min(kChunk, high - c * kChunk);
            const typename KV::Value* ahead = kv.values(chunks[std::min(c + kAbreast, last - 1)], head) + offset;
            for (std::size_t token = 0; token < count; ++token) {
                QM_UNROLL
                for (int d = 0; d < kParts; d += 2) {
                    _mm_prefetch(reinterpret_cast<const char*>(ahead + token * dim + d * 16), _MM_HINT_T0);
                }
                const __m512 value_scale = _mm512_set1_ps(kv.value_scale(chunks[c], head, token));
                __m512 value[kParts];
                QM_UNROLL
                for (int d = 0; d < kParts; ++d) value[d] = KV::value16(values + token * dim + d * 16);
                QM_UNROLL
                for (int q = 0; q < kQueries; ++q) {
                    const __m512 weight = _mm512_set1_ps(own[q * width + token]);
                    weights[q] = _mm512_add_ps(weights[q], weight);
                    __m512 factor = weight;
                    if constexpr (KV::kHasScales) factor = _mm512_mul_ps(weight, value_scale);
                    QM_UNROLL
                    for (int d = 0; d < kParts; ++d) {
                        sums[q][d] = _mm512_fmadd_ps(factor, value[d], sums[q][d]);
                    }
                }
            }
        }
        QM_UNROLL
        for (int q = 0; q < kQueries; ++q) {
            QM_UNROLL
            for (int d = 0; d < kParts; ++d) {
                narrow16(asked[q].to + offset + d * 16, _mm512_div_ps(sums[q][d], weights[q]));
            }
        }
    }

    Heads heads_;
    std::vector<Item> items_;
};

}  // namespace quickmatch::decoder
#endif
