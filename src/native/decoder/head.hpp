// A trained head in one call a draft: one layer over the target's hidden states, several levels deep.
//
// The computation is head_layer.py's, the drafter's part head.py's; both say what the names mean.
// Keys and values of rows that stand lie at the target's slots. Those of drafted rows lie in chunks of
// their own behind them, which begin with a copy of the sequence's last chunk where that is not full:
// so a draft that is thrown away leaves no trace.
#pragma once

#include "isa.hpp"

#if QM_HAS_DECODER
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "attention.hpp"
#include "beams.hpp"
#include "paged_kv.hpp"
#include "product.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace quickmatch::decoder {

struct HeadShape {
    std::size_t hidden, inner, num_aux, target_hidden, draft_vocab, vocab;
    Heads heads;
    float eps;
    std::size_t num_slots, block_size, max_len;
    bool norm_before_residual;
    std::size_t q_size() const { return heads.num_query * heads.dim; }
    std::size_t kv_size() const { return heads.num_kv * heads.dim; }
    std::size_t qkv_size() const { return q_size() + 2 * kv_size(); }
    std::size_t features() const { return num_aux * target_hidden; }
};

struct HeadWeights {
    Arena arena;
    Weight fuse, qkv, o, gate_up, down, lm_head;
    std::vector<float> embedding_norm, hidden_norm, mlp_norm, final_norm;
    std::vector<float> cos, sin;              // [max_len, dim / 2]
    std::vector<std::int32_t> target_ids;     // of the draft vocabulary
    const Bf16* embedding;                    // [vocab, hidden]; kept alive by the caller
};

struct Request {
    std::int64_t sequence_id;
    std::int64_t end;  // tokens of the sequence
    std::int32_t last_token;
};

class Head {
  public:
    Head(HeadShape shape, HeadWeights weights, Team& team)
        : shape_(shape),
          weights_(std::move(weights)),
          team_(team),
          attention_(shape.heads),
          kv_(shape.num_slots + kMaxTogether * kScratchChunks * kChunk, shape.heads.num_kv,
              shape.heads.dim) {}

    std::size_t num_bytes() const {
        const HeadWeights& w = weights_;
        std::size_t total = 0;
        for (const Weight* one : {&w.fuse, &w.qkv, &w.o, &w.gate_up, &w.down, &w.lm_head}) {
            total += one->num_bytes();
        }
        return total;
    }

    // Take in rows that became part of a sequence. aux: of each layer [tokens, target_hidden].
    void observe(std::int64_t sequence_id, std::size_t start, const std::vector<std::int32_t>& rows,
                 const std::vector<std::int32_t>& next_tokens,
                 const std::vector<std::int32_t>& blocks, const std::vector<const Bf16*>& aux) {
        Pending& pending = pending_[sequence_id];
        if (pending.end() != start) pending = Pending{start, {}, {}, {}};
        const std::size_t size = shape_.target_hidden;
        for (const std::int32_t row : rows) {
            for (const Bf16* layer : aux) {
                const Bf16* from = layer + std::size_t(row) * size;
                pending.features.insert(pending.features.end(), from, from + size);
            }
        }
        pending.next_tokens.insert(pending.next_tokens.end(), next_tokens.begin(), next_tokens.end());
        pending.blocks = blocks;
        // Not the last one, which a draft starts from.
        if (pending.size() > kMaxPending) store({&pending}, {pending.size() - 1});
    }

    // Drop a sequence that has ended; what waits is stored first: others may reuse its blocks.
    void forget(std::int64_t sequence_id) {
        const auto found = pending_.find(sequence_id);
        if (found == pending_.end()) return;
        if (found->second.size() > 0) store({&found->second}, {found->second.size()});
        pending_.erase(found);
    }

    // A tree for each request, empty for one whose last row was not observed.
    std::vector<DraftedTree> draft(const std::vector<Request>& requests, std::size_t depth,
                                   std::size_t width, std::size_t max_nodes, double min_path) {
        team_.set_active(requests.size() * width >= kSharedRows);
        std::vector<DraftedTree> out(requests.size());
        std::vector<std::size_t> ready;
        for (std::size_t i = 0; i < requests.size(); ++i) {
            if (is_ready(requests[i])) ready.push_back(i);
        }
        width = std::min({width, shape_.draft_vocab, kMaxWidth});
        depth = std::min(depth, kMaxDrafted / width);
        for (std::size_t first = 0; first < ready.size(); first += kMaxTogether) {
            const std::size_t last = std::min(first + kMaxTogether, ready.size());
            draft_some(requests, {ready.begin() + first, ready.begin() + last}, depth, width,
                       max_nodes, min_path, out);
        }
        return out;
    }

  private:
    static constexpr std::size_t kSharedRows = 8;
    static constexpr std::size_t kMaxPending = 64, kMaxTogether = 64, kMaxWidth = 8;
    static constexpr std::size_t kMaxDrafted = 256;                          // rows a sequence
    static constexpr std::size_t kScratchChunks = kMaxDrafted / kChunk + 1;  // a sequence
    static constexpr std::size_t kMaxDim = 512;

    // Rows of a sequence that have not been used yet, of positions start, start + 1, …
    struct Pending {
        std::size_t start = 0;
        std::vector<std::int32_t> next_tokens, blocks;
        std::vector<Bf16> features;
        std::size_t size() const { return next_tokens.size(); }
        std::size_t end() const { return start + size(); }
    };

    // A sequence while it is drafted for.
    struct Drafting {
        std::size_t length;     // rows that stand
        std::size_t num_added;  // drafted rows
        Beam beam;
        std::vector<std::uint32_t> chunks;
        std::vector<std::vector<std::size_t>> lineages;  // of the last level's rows: drafted rows
        std::vector<std::size_t> level_rows;              // of the last level, in m_
    };

    bool is_ready(const Request& request) const {
        const auto found = pending_.find(request.sequence_id);
        if (found == pending_.end() || found->second.size() == 0) return false;
        const Pending& pending = found->second;
        return std::int64_t(pending.end()) == request.end - 1 &&
               pending.next_tokens.back() == request.last_token;
    }

    std::size_t slot(const Pending& pending, std::size_t position) const {
        return std::size_t(pending.blocks.at(position / shape_.block_size)) * shape_.block_size +
               position % shape_.block_size;
    }

    // Compute keys and values of the first counts[i] rows of each, and take them from what waits.
    // Leaves queries, residuals and g of all rows in order.
    void store(const std::vector<Pending*>& waiting, const std::vector<std::size_t>& counts) {
        std::size_t rows = 0;
        for (const std::size_t count : counts) rows += count;
        const std::size_t size = shape_.features();
        Bf16* features = features_.at_least(rows * size);
        token_ids_.clear();
        positions_.clear();
        slots_.clear();
        std::size_t row = 0;
        for (std::size_t i = 0; i < waiting.size(); ++i) {
            Pending& pending = *waiting[i];
            const std::size_t count = counts[i];
            std::memcpy(features + row * size, pending.features.data(), count * size * sizeof(Bf16));
            for (std::size_t k = 0; k < count; ++k) {
                token_ids_.push_back(pending.next_tokens[k]);
                positions_.push_back(pending.start + k);
                slots_.push_back(slot(pending, pending.start + k));
            }
            row += count;
            pending.start += count;
            pending.next_tokens.erase(pending.next_tokens.begin(), pending.next_tokens.begin() + count);
            pending.features.erase(pending.features.begin(), pending.features.begin() + count * size);
        }
        float* g = residual_.at_least(rows * shape_.hidden);
        multiply(team_, weights_.fuse, features, rows, Target{g, shape_.hidden, false});
        project(rows, g);
    }

    // g: [rows, hidden], which becomes the residual; keys and values go to slots_.
    void project(std::size_t rows, float* g) {
        const std::size_t hidden = shape_.hidden, dim = shape_.heads.dim, half = dim / 2;
        Bf16* x = normed_.at_least(rows * 2 * hidden);
        float* embedded = wide_.at_least(rows * std::max({hidden, shape_.qkv_size(), 2 * shape_.inner}));
        for (std::size_t r = 0; r < rows; ++r) {
            widen(weights_.embedding + std::size_t(token_ids_[r]) * hidden, hidden, embedded);
            rms_norm(embedded, weights_.embedding_norm.data(), shape_.eps, hidden, x + r * 2 * hidden);
            float* own = g + r * hidden;
            if (shape_.norm_before_residual) rms_norm_(own, weights_.hidden_norm.data(), shape_.eps, hidden);
            Bf16* to = x + r * 2 * hidden + hidden;
            if (shape_.norm_before_residual) {
                narrow(own, hidden, to);
            } else {
                rms_norm(own, weights_.hidden_norm.data(), shape_.eps, hidden, to);
            }
        }
        float* qkv = wide_.at_least(rows * std::max(shape_.qkv_size(), 2 * shape_.inner));
        multiply(team_, weights_.qkv, x, rows, Target{qkv, shape_.qkv_size(), false});
        Bf16* queries = queries_.at_least(rows * shape_.q_size());
        for (std::size_t r = 0; r < rows; ++r) {
            float* own = qkv + r * shape_.qkv_size();
            const std::size_t at = std::min(positions_[r], shape_.max_len - 1) * half;
            for (std::size_t head = 0; head < shape_.heads.num_query + shape_.heads.num_kv; ++head) {
                rotate_(own + head * dim, weights_.cos.data() + at, weights_.sin.data() + at, half);
            }
            narrow(own, shape_.q_size(), queries + r * shape_.q_size());
            Bf16 key[kMaxDim], value[kMaxDim];
            for (std::size_t head = 0; head < shape_.heads.num_kv; ++head) {
                narrow(own + shape_.q_size() + head * dim, dim, key);
                narrow(own + shape_.q_size() + shape_.kv_size() + head * dim, dim, value);
                kv_.write(slots_[r], head, key, value);
            }
        }
    }

    // Attention and the rest of the layer for rows whose queries and residuals stand in order;
    // leaves m in `residual`, and each row's likeliest tokens in likeliest_.
    void finish(std::size_t rows, const Bf16* queries, float* residual, std::size_t width) {
        const std::size_t hidden = shape_.hidden, inner = shape_.inner, vocab = shape_.draft_vocab;
        Bf16* attended = inner_.at_least(rows * std::max(shape_.q_size(), inner));
        attention_.run(team_, kv_, spans_, views_, marks_, queries, attended);
        multiply(team_, weights_.o, attended, rows, Target{residual, hidden, true});
        Bf16* normed = normed_.at_least(rows * 2 * hidden);
        for (std::size_t r = 0; r < rows; ++r) {
            rms_norm(residual + r * hidden, weights_.mlp_norm.data(), shape_.eps, hidden, normed + r * hidden);
        }
        float* wide = wide_.at_least(rows * std::max(shape_.qkv_size(), 2 * inner));
        multiply(team_, weights_.gate_up, normed, rows, Target{wide, 2 * inner, false});
        for (std::size_t r = 0; r < rows; ++r) {
            const float* gates = wide + r * 2 * inner;
            silu_times(gates, gates + inner, inner, attended + r * inner);
        }
        multiply(team_, weights_.down, attended, rows, Target{residual, hidden, true});
        for (std::size_t r = 0; r < rows; ++r) {
            rms_norm(residual + r * hidden, weights_.final_norm.data(), shape_.eps, hidden, normed + r * hidden);
        }
        float* logits = logits_.at_least(rows * vocab);
        multiply(team_, weights_.lm_head, normed, rows, Target{logits, vocab, false});
        likeliest_.resize(rows);
        for (std::size_t r = 0; r < rows; ++r) choose(logits + r * vocab, width, likeliest_[r]);
    }

    // The `width` likeliest of a row's tokens, as the target numbers them.
    QM_AVX512 void choose(const float* logits, std::size_t width,
                          std::vector<std::pair<double, std::int32_t>>& out) const {
        const std::size_t vocab = shape_.draft_vocab;
        out.clear();
        std::array<std::size_t, kMaxWidth> best{};
        std::size_t num_best = 0;
        for (std::size_t i = 0; i < vocab; ++i) {
            if (num_best == width && logits[i] <= logits[best[num_best - 1]]) continue;
            std::size_t place = num_best < width ? num_best++ : num_best - 1;
            while (place > 0 && logits[best[place - 1]] < logits[i]) {
                best[place] = best[place - 1];
                --place;
            }
            best[place] = i;
        }
        const __m512 top = _mm512_set1_ps(logits[best[0]]);
        __m512 sum = _mm512_setzero_ps();
        for (std::size_t i = 0; i < vocab; i += 16) {
            const std::size_t left = vocab - i;
            const __mmask16 mask = left >= 16 ? 0xFFFF : (1u << left) - 1;
            const __m512 some = _mm512_mask_loadu_ps(_mm512_set1_ps(-1e30f), mask, logits + i);
            sum = _mm512_add_ps(sum, exp16(_mm512_sub_ps(some, top)));
        }
        const double total = _mm512_reduce_add_ps(sum);
        for (std::size_t k = 0; k < num_best; ++k) {
            const double weight = std::exp(double(logits[best[k]]) - double(logits[best[0]]));
            out.push_back({std::min(weight / total, 1.0), weights_.target_ids[best[k]]});
        }
    }

    void draft_some(const std::vector<Request>& requests, const std::vector<std::size_t>& chosen,
                    std::size_t depth, std::size_t width, std::size_t max_nodes, double min_path,
                    std::vector<DraftedTree>& out) {
        if (depth == 0) return;
        std::vector<Drafting> all(chosen.size());
        first_level(requests, chosen, width, all);
        for (std::size_t level = 0;; ++level) {
            bool is_alive = false;
            for (Drafting& one : all) {
                for (std::size_t row = 0; row < one.beam.nodes.size(); ++row) {
                    one.beam.look(row, likeliest_[one.level_rows[row]], min_path);
                }
                one.beam.narrow(width);
                is_alive = is_alive || !one.beam.nodes.empty();
            }
            if (!is_alive || level + 1 == depth) break;
            next_level(all, width);
        }
        for (std::size_t i = 0; i < chosen.size(); ++i) out[chosen[i]] = all[i].beam.best(max_nodes);
    }

    // Use all pending rows; the last of each sequence scores the first level.
    void first_level(const std::vector<Request>& requests, const std::vector<std::size_t>& chosen,
                     std::size_t width, std::vector<Drafting>& all) {
        std::vector<Pending*> waiting;
        std::vector<std::size_t> counts;
        for (const std::size_t i : chosen) {
            waiting.push_back(&pending_.at(requests[i].sequence_id));
            counts.push_back(waiting.back()->size());
        }
        store(waiting, counts);
        const std::size_t hidden = shape_.hidden, q_size = shape_.q_size();
        float* m = m_.at_least(chosen.size() * hidden);
        Bf16* queries = last_queries_.at_least(chosen.size() * q_size);
        spans_.clear();
        views_.clear();
        marks_.clear();
        std::size_t row = 0;
        for (std::size_t i = 0; i < chosen.size(); ++i) {
            row += counts[i];
            std::memcpy(m + i * hidden, residual_.at_least(0) + (row - 1) * hidden, hidden * sizeof(float));
            std::memcpy(queries + i * q_size, queries_.at_least(0) + (row - 1) * q_size, q_size * sizeof(Bf16));
            Drafting& one = all[i];
            one.length = waiting[i]->start;
            one.num_added = 0;
            one.level_rows = {i};
            const std::size_t num_chunks = (one.length + kChunk - 1) / kChunk;
            for (std::size_t c = 0; c < num_chunks; ++c) {
                one.chunks.push_back(std::uint32_t(slot(*waiting[i], c * kChunk) / kChunk));
            }
            spans_.push_back(Span{i, 1, one.length - 1, kNoTree, one.chunks});
            views_.push_back(View{0, one.length, one.length, kNoTree});
        }
        finish(chosen.size(), queries, m, width);
        for (std::size_t i = 0; i < all.size(); ++i) to_scratch(i, all[i]);
    }

    // From here on a sequence's last chunk, if not full, and those behind it are its own copies.
    void to_scratch(std::size_t index, Drafting& one) {
        const std::size_t num_full = one.length / kChunk;
        const std::size_t first = shape_.num_slots / kChunk + index * kScratchChunks;
        std::vector<char> saved(kv_.saved_size());
        for (std::size_t token = num_full * kChunk; token < one.length; ++token) {
            for (std::size_t head = 0; head < shape_.heads.num_kv; ++head) {
                kv_.save(one.chunks[num_full] * kChunk + token % kChunk, head, saved.data());
                kv_.restore(first * kChunk + token % kChunk, head, saved.data());
            }
        }
        one.chunks.resize(num_full);
        for (std::size_t c = 0; c < kScratchChunks; ++c) one.chunks.push_back(std::uint32_t(first + c));
    }

    // Run the rows that the beams go on from; the m of their parents stands in for g.
    void next_level(std::vector<Drafting>& all, std::size_t width) {
        const std::size_t hidden = shape_.hidden;
        token_ids_.clear();
        positions_.clear();
        slots_.clear();
        spans_.clear();
        views_.clear();
        marks_.clear();
        std::vector<std::size_t> parents;
        for (Drafting& one : all) {
            if (one.beam.nodes.empty()) {
                one.level_rows.clear();
                continue;
            }
            std::vector<std::vector<std::size_t>> lineages;
            std::vector<std::size_t> level_rows;
            const std::size_t start = parents.size(), first_added = one.num_added;
            for (std::size_t i = 0; i < one.beam.nodes.size(); ++i) {
                const std::size_t parent = one.beam.rows[i];
                auto lineage = one.lineages.empty() ? std::vector<std::size_t>() : one.lineages[parent];
                lineage.push_back(one.num_added);
                const std::size_t at = one.length + one.num_added++;
                token_ids_.push_back(one.beam.token(one.beam.nodes[i]));
                positions_.push_back(one.length + lineage.size() - 1);
                slots_.push_back(one.chunks[at / kChunk] * kChunk + at % kChunk);
                views_.push_back(see(one, lineage, at));
                level_rows.push_back(parents.size());
                parents.push_back(one.level_rows[parent]);
                lineages.push_back(std::move(lineage));
            }
            spans_.push_back(Span{start, parents.size() - start, one.length + first_added, kNoTree, one.chunks});
            one.lineages = std::move(lineages);
            one.level_rows = std::move(level_rows);
        }
        const std::size_t rows = parents.size();
        float* g = residual_.at_least(rows * hidden);
        for (std::size_t r = 0; r < rows; ++r) {
            std::memcpy(g + r * hidden, m_.at_least(0) + parents[r] * hidden, hidden * sizeof(float));
        }
        project(rows, g);
        float* m = m_.at_least(rows * hidden);
        std::memcpy(m, g, rows * hidden * sizeof(float));
        finish(rows, queries_.at_least(0), m, width);
    }

    // A drafted row sees all that stands, its ancestors and itself.
    View see(const Drafting& one, const std::vector<std::size_t>& lineage, std::size_t at) {
        View view{0, at + 1, one.length, kNoTree};
        if (lineage.size() == one.num_added) return view;  // a chain: all before it
        const std::size_t base = one.length / kChunk * kChunk;
        view.marks = marks_.size();
        marks_.resize(marks_.size() + (at + 1 - base + kChunk - 1) / kChunk, 0);
        std::uint16_t* words = marks_.data() + view.marks;
        const auto set = [&](std::size_t bit) {
            words[bit / kChunk] = std::uint16_t(words[bit / kChunk] | 1u << bit % kChunk);
        };
        for (std::size_t token = base; token < one.length; ++token) set(token - base);
        for (const std::size_t row : lineage) set(one.length + row - base);
        return view;
    }

    HeadShape shape_;
    HeadWeights weights_;
    Team& team_;
    Attention attention_;
    PagedKV kv_;
    std::map<std::int64_t, Pending> pending_;

    std::vector<Span> spans_;
    std::vector<View> views_;
    std::vector<std::uint16_t> marks_;
    std::vector<std::int32_t> token_ids_;
    std::vector<std::size_t> positions_, slots_;
    std::vector<std::vector<std::pair<double, std::int32_t>>> likeliest_;
    Scratch<Bf16> features_, normed_, queries_, last_queries_, inner_;
    Scratch<float> residual_, m_, wide_, logits_;
};

}  // namespace quickmatch::decoder
#endif
