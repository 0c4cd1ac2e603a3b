// A trained head's one layer: from rows of g to keys and values, and on to the likeliest tokens.
//
// The computation is head_layer.py's. Owns the weights, the keys and values and the memory between; it
// does not know sequences, trees or what a row stands for.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "paged_kv.hpp"
#include "product.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

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

// Rows that are computed together.
struct HeadRows {
    std::vector<std::int32_t> token_ids;
    std::vector<std::size_t> positions, slots;
    std::vector<Span> spans;

    void clear() {
        token_ids.clear();
        positions.clear();
        slots.clear();
        spans.clear();
    }
};

class HeadLayer {
  public:
    static constexpr std::size_t kMaxWidth = 8;  // likeliest tokens of a row

    HeadLayer(HeadShape shape, HeadWeights weights, Team& team, std::size_t num_slots)
        : shape_(shape),
          weights_(std::move(weights)),
          team_(team),
          attention_(shape.heads),
          kv_(num_slots, shape.heads.num_kv, shape.heads.dim) {}

    std::size_t num_bytes() const {
        const HeadWeights& w = weights_;
        std::size_t total = 0;
        for (const Weight* one : {&w.fuse, &w.qkv, &w.o, &w.gate_up, &w.down, &w.lm_head}) {
            total += one->num_bytes();
        }
        return total;
    }

    PagedKV& kv() { return kv_; }
    const Operand* queries() const { return queries_.data(); }  // of the rows that were projected last
    const std::vector<std::vector<std::pair<double, std::int32_t>>>& likeliest() const { return likeliest_; }

    // From features [rows, num_aux * target_hidden] to g [rows, hidden].
    void fuse(const Operand* features, std::size_t rows, float* g) {
        multiply(team_, weights_.fuse, features, rows, Target{g, shape_.hidden, false});
    }

    // g: [rows, hidden], which becomes the residual; keys and values go to the rows' slots, queries to `queries()`.
    void project(const HeadRows& step, float* g) {
        const std::size_t rows = step.token_ids.size();
        const std::size_t hidden = shape_.hidden, dim = shape_.heads.dim, half = dim / 2;
        Operand* x = normed_.at_least(rows * 2 * hidden);
        float* embedded = wide_.at_least(rows * std::max({hidden, shape_.qkv_size(), 2 * shape_.inner}));
        for (std::size_t r = 0; r < rows; ++r) {
            convert(weights_.embedding + std::size_t(step.token_ids[r]) * hidden, hidden, embedded);
            rms_norm(embedded, weights_.embedding_norm.data(), shape_.eps, hidden, x + r * 2 * hidden);
            float* own = g + r * hidden;
            if (shape_.norm_before_residual) rms_norm_(own, weights_.hidden_norm.data(), shape_.eps, hidden);
            Operand* to = x + r * 2 * hidden + hidden;
            if (shape_.norm_before_residual) {
                convert(own, hidden, to);
            } else {
                rms_norm(own, weights_.hidden_norm.data(), shape_.eps, hidden, to);
            }
        }
        float* qkv = wide_.at_least(rows * std::max(shape_.qkv_size(), 2 * shape_.inner));
        multiply(team_, weights_.qkv, x, rows, Target{qkv, shape_.qkv_size(), false});
        Operand* queries = queries_.at_least(rows * shape_.q_size());
        for (std::size_t r = 0; r < rows; ++r) {
            float* own = qkv + r * shape_.qkv_size();
            const std::size_t at = std::min(step.positions[r], shape_.max_len - 1) * half;
            for (std::size_t head = 0; head < shape_.heads.num_query + shape_.heads.num_kv; ++head) {
                rotate_(own + head * dim, weights_.cos.data() + at, weights_.sin.data() + at, half);
            }
            convert(own, shape_.q_size(), queries + r * shape_.q_size());
            Bf16 key[kMostDims], value[kMostDims];
            for (std::size_t head = 0; head < shape_.heads.num_kv; ++head) {
                convert(own + shape_.q_size() + head * dim, dim, key);
                convert(own + shape_.q_size() + shape_.kv_size() + head * dim, dim, value);
                kv_.write(step.slots[r], head, key, value);
            }
        }
    }

    // Attention and the rest of the layer for rows whose queries and residuals stand in order;
    // leaves m in `residual`, and each row's `width` likeliest tokens in likeliest().
    void finish(std::size_t rows, const Operand* queries, const std::vector<Span>& spans, const Sight& sight,
                float* residual, std::size_t width) {
        const std::size_t hidden = shape_.hidden, inner = shape_.inner, vocab = shape_.draft_vocab;
        Operand* attended = inner_.at_least(rows * std::max(shape_.q_size(), inner));
        attention_.run(team_, kv_, spans, sight, queries, attended);
        multiply(team_, weights_.o, attended, rows, Target{residual, hidden, true});
        Operand* normed = normed_.at_least(rows * 2 * hidden);
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

  private:
    // The `width` likeliest of a row's tokens, as the target numbers them.
    QM_KERNEL void choose(const float* logits, std::size_t width,
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
        const F16 top = all(logits[best[0]]);
        F16 sum = none_f();
        for (std::size_t i = 0; i < vocab; i += 16) {
            const std::size_t left = vocab - i;
            const Mask16 mask = left >= 16 ? 0xFFFF : (1u << left) - 1;
            const F16 some = load_some(mask, logits + i, all(-1e30f));
            sum = add(sum, exp16(sub(some, top)));
        }
        const double total = sum_of(sum);
        for (std::size_t k = 0; k < num_best; ++k) {
            const double weight = std::exp(double(logits[best[k]]) - double(logits[best[0]]));
            out.push_back({std::min(weight / total, 1.0), weights_.target_ids[best[k]]});
        }
    }

    HeadShape shape_;
    HeadWeights weights_;
    Team& team_;
    Attention attention_;
    PagedKV kv_;
    std::vector<std::vector<std::pair<double, std::int32_t>>> likeliest_;
    Scratch<Operand> normed_, queries_, inner_;
    Scratch<float> wide_, logits_;
};

}  // namespace quickmatch::QM_ISA
