// The decoder in one call a step: all layers over a step's flattened rows, for every family.
//
// The same pass as decoder.py makes of torch's operations, for processors from AVX2 on.
// There a step of a small model is some hundred operations whose start takes longer than their work;
// here it is one. The residual is float32, products read bfloat16 and sum in float32.
//
// A row's numbers do not depend on the rows beside it, bit for bit (product.hpp, attention.hpp).
#pragma once

#include "isa.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <variant>
#include <vector>

#include "adapter.hpp"
#include "attention.hpp"
#include "eviction.hpp"
#include "matrix.hpp"
#include "paged_kv.hpp"
#include "product.hpp"
#include "rows.hpp"
#include "sharing.hpp"
#include "sight.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

struct Shape {
    std::size_t vocab, hidden, inner, num_layers;
    Heads heads;
    float eps;
    std::size_t num_slots, block_size, max_len;
    bool has_int8_kv;
    std::size_t q_size() const { return heads.num_query * heads.dim; }
    std::size_t kv_size() const { return heads.num_kv * heads.dim; }
    std::size_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

struct Layer {
    std::vector<float> attention_norm, mlp_norm;
    std::vector<float> head_norms;  // [num_query + num_kv, dim]; empty: none
    std::array<Matrix, kNumPlaces> weights;
};

// One step's rows. `row_adapters`: -1 for the base.
struct Step {
    std::vector<std::int32_t> token_ids, positions, slots, row_adapters;
    std::vector<Span> spans;
    std::vector<std::int32_t> parents;  // of the nodes of all trees; -1: the sequence's last token
    std::vector<std::int32_t> wanted;   // rows whose logits are wanted
    std::vector<std::int32_t> aux_layers;
    std::vector<std::int32_t> windows;  // of each layer; 0: none
};

class Decoder {
  public:
    Decoder(Shape shape, int num_threads)
        : shape_(shape), team_(num_threads), attention_(shape.heads) {
        for (std::size_t i = 0; i < shape.num_layers; ++i) {
            const auto [slots, heads] = std::pair(shape.num_slots, shape.heads);
            if (shape.has_int8_kv) {
                kv_.emplace_back(std::in_place_type<Int8KV>, slots, heads.num_kv, heads.dim);
            } else {
                kv_.emplace_back(std::in_place_type<PagedKV>, slots, heads.num_kv, heads.dim);
            }
        }
    }

    // ---- loading. Matrices are [out, in] bfloat16.

    Arena& arena() { return arena_; }

    // [vocab, hidden]; to be kept alive by the caller, who has other uses for it. Null: the output
    // layer's weights, which are of few bits then, are the embedding too.
    void set_embedding(const Bf16* from) { embedding_ = from; }
    void set_lm_head(Matrix weight) { lm_head_ = std::move(weight); }
    void set_final_norm(const float* from) { final_norm_.assign(from, from + shape_.hidden); }
    // cos, sin: [max_len, dim / 2]
    void set_rotary(const float* cos, const float* sin) {
        const std::size_t size = shape_.max_len * shape_.heads.dim / 2;
        cos_.assign(cos, cos + size);
        sin_.assign(sin, sin + size);
    }
    void add_layer(Layer layer) { layers_.push_back(std::move(layer)); }
    void set_adapter(std::int32_t row, std::unique_ptr<Adapter> adapter) {
        adapters_[row] = std::move(adapter);
    }
    void drop_adapter(std::int32_t row) { adapters_.erase(row); }
    // Whether a product's weights are in 8 or 4 bits, and what adapters add to it in bytes, too.
    bool has_few_bits(std::size_t layer, std::size_t place) const {
        return std::holds_alternative<IntWeight>(layers_.at(layer).weights[place]);
    }

    std::size_t num_bytes() const {
        std::size_t total = QM_ISA::num_bytes(lm_head_);
        for (const Layer& layer : layers_) {
            for (const Matrix& weight : layer.weights) total += QM_ISA::num_bytes(weight);
        }
        return total;
    }

    // A head shares the threads: it drafts between two steps.
    Team& team() { return team_; }

    // ---- running

    // logits: [wanted, vocab]. aux: [aux_layers, rows, hidden], the hidden states entering them.
    // Returns the likeliest token of each wanted row.
    std::vector<std::int32_t> run(const Step& step, float* logits, Bf16* aux) {
        const std::size_t rows = step.token_ids.size();
        if (QM_ISA::num_bytes(lm_head_) >= kSharedBytes) {
            team_.set_active(true);
            return pass(step, logits, aux);
        }
        team_.set_active(sharing_.begin(rows));
        const std::vector<std::int32_t> best = pass(step, logits, aux);
        sharing_.end(rows);
        return best;
    }

    // See ForwardPass.evict.
    void evict(const Eviction& eviction) {
        const std::size_t num_heads = shape_.heads.num_kv;
        team_.set_active(true);
        team_.share(kv_.size() * num_heads, [&](std::size_t first, std::size_t last) {
            for (std::size_t i = first; i < last; ++i) {
                const auto draw = [&](auto& kv) { evict_head(kv, i % num_heads, shape_.heads.dim, eviction); };
                std::visit(draw, kv_[i / num_heads]);
            }
        });
    }

    // Copy slots `from` to slots `to`, in every layer; all are read before any is written.
    void move(const std::vector<std::int32_t>& from, const std::vector<std::int32_t>& to) {
        for (auto& layer : kv_) {
            std::visit([&](auto& kv) { move_in(kv, from, to); }, layer);
        }
    }

  private:
    template <typename KV>
    void move_in(KV& kv, const std::vector<std::int32_t>& from, const std::vector<std::int32_t>& to) {
        const std::size_t size = kv.saved_size();
        std::vector<char> saved(from.size() * size);
        for (std::size_t head = 0; head < shape_.heads.num_kv; ++head) {
            for (std::size_t i = 0; i < from.size(); ++i) kv.save(from[i], head, saved.data() + i * size);
            for (std::size_t i = 0; i < to.size(); ++i) kv.restore(to[i], head, saved.data() + i * size);
        }
    }

    void embed(std::size_t token_id, float* x) const {
        if (embedding_ != nullptr) {
            convert(embedding_ + token_id * shape_.hidden, shape_.hidden, x);
        } else {
            std::get<IntWeight>(lm_head_).read(token_id, x);
        }
    }

    std::vector<std::int32_t> pass(const Step& step, float* logits, Bf16* aux) {
        const std::size_t rows = step.token_ids.size(), hidden = shape_.hidden;
        see(step);
        find_adapters(step);
        float* x = hidden_.at_least(rows * hidden);
        for (std::size_t r = 0; r < rows; ++r) {
            embed(std::size_t(step.token_ids[r]), x + r * hidden);
        }
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            for (std::size_t a = 0; a < step.aux_layers.size(); ++a) {
                if (std::size_t(step.aux_layers[a]) == i) convert(x, rows * hidden, aux + a * rows * hidden);
            }
            attend(step, i, x);
            transform(step, i, x);
        }
        const std::size_t wanted = step.wanted.size();
        std::vector<std::int32_t> best(wanted);
        if (wanted == 0) return best;
        Operand* normed = normed_.at_least(wanted * hidden);
        for (std::size_t w = 0; w < wanted; ++w) {
            rms_norm(x + std::size_t(step.wanted[w]) * hidden, final_norm_.data(), shape_.eps, hidden,
                     normed + w * hidden);
        }
        multiply(team_, lm_head_, normed, wanted, Target{logits, shape_.vocab, false}, rounded_);
        team_.share(wanted, [&](std::size_t first, std::size_t last) {
            for (std::size_t w = first; w < last; ++w) {
                best[w] = std::int32_t(argmax(logits + w * shape_.vocab, shape_.vocab));
            }
        });
        return best;
    }

    void see(const Step& step) {
        sight_.clear();
        sight_.views.resize(step.token_ids.size());
        for (const Span& span : step.spans) {
            for (std::size_t i = 0; i < span.num_rows; ++i) {
                View& view = sight_.views[span.start + i];
                view = View{0, span.context + i + 1, span.context + 1};
                if (span.tree_start == kNoTree || i == 0) continue;
                sight_.mark(view, span.context + span.num_rows, [&](const auto& see) {  // a node's ancestors
                    for (std::int32_t node = std::int32_t(i) - 1; node >= 0;
                         node = step.parents[span.tree_start + node]) {
                        see(view.context + node);
                    }
                });
            }
        }
    }

    void find_adapters(const Step& step) {
        adapted_.parts.clear();
        std::map<std::int32_t, std::size_t> part_of;
        for (std::size_t r = 0; r < step.row_adapters.size(); ++r) {
            const std::int32_t row = step.row_adapters[r];
            if (row < 0) continue;
            const auto [found, is_new] = part_of.try_emplace(row, adapted_.parts.size());
            if (is_new) adapted_.parts.push_back({adapters_.at(row).get(), {}});
            adapted_.parts[found->second].rows.push_back(r);
        }
    }

    void norm_rows(const float* x, const std::vector<float>& weight, std::size_t rows, Operand* out) {
        const std::size_t hidden = shape_.hidden;
        share_rows(rows, [&](std::size_t first, std::size_t last) {
            for (std::size_t r = first; r < last; ++r) {
                rms_norm(x + r * hidden, weight.data(), shape_.eps, hidden, out + r * hidden);
            }
        });
    }

    void attend(const Step& step, std::size_t index, float* x) {
        const std::size_t rows = step.token_ids.size(), hidden = shape_.hidden;
        const std::size_t qkv_size = shape_.qkv_size(), q_size = shape_.q_size();
        const Layer& layer = layers_[index];
        Operand* normed = normed_.at_least(rows * hidden);
        norm_rows(x, layer.attention_norm, rows, normed);
        adapted_.start(team_, index, 0, normed, hidden);
        float* qkv = wide_.at_least(rows * std::max(qkv_size, 2 * shape_.inner));
        Operand* queries = queries_.at_least(rows * q_size);
        const Product product(team_, layer.weights[0], normed, rows, Target{qkv, qkv_size, false}, rounded_);
        // Whoever has computed some heads puts them where they go, as long as they are in its cache.
        const std::size_t dim = shape_.heads.dim, num_heads = qkv_size / dim;
        const std::size_t outputs = std::lcm(dim, kGroupOutputs);
        const std::size_t groups_each = outputs / kGroupOutputs, heads_each = outputs / dim;
        const std::size_t together = std::max<std::size_t>(1, adapted_.groups_at_once(rows) / groups_each);
        team_.share((qkv_size + outputs - 1) / outputs, [&](std::size_t first, std::size_t last) {
            for (std::size_t unit = first; unit < last; unit += together) {
                const std::size_t next = std::min(unit + together, last);
                product.run(unit * groups_each, std::min(next * groups_each, product.num_groups()));
                adapted_.add(unit * outputs, std::min(next * outputs, qkv_size), qkv, qkv_size);
                for (std::size_t head = unit * heads_each; head < std::min(next * heads_each, num_heads); ++head) {
                    place_head(step, head, index, qkv, queries);
                }
            }
        });
        limit(step, index);
        Operand* attended = inner_.at_least(rows * std::max(q_size, shape_.inner));
        const auto over = [&](const auto& kv) {
            attention_.run(team_, kv, step.spans, sight_, queries, attended);
        };
        std::visit(over, kv_[index]);
        add_product(index, 1, attended, q_size, rows, x);
    }

    // Add to x: [rows, hidden] what a place makes of its input.
    void add_product(std::size_t index, std::size_t place, const Operand* from, std::size_t in, std::size_t rows,
                     float* x) {
        const std::size_t hidden = shape_.hidden;
        const Target target{x, hidden, true};
        adapted_.start(team_, index, place, from, in);
        const Product product(team_, layers_[index].weights[place], from, rows, target, rounded_);
        share_groups(product, rows, x, hidden);
    }

    // Compute all of y: [rows, out], as many groups of outputs at once as is best for the adapters.
    void share_groups(const Product& product, std::size_t rows, float* y, std::size_t out) {
        const std::size_t together = adapted_.groups_at_once(rows);
        team_.share(product.num_groups(), [&](std::size_t first, std::size_t last) {
            for (; first < last; first += together) run_groups(product, first, std::min(first + together, last), y, out);
        });
    }

    // Compute groups [first, last) of y: [rows, out], the adapters' share with them.
    void run_groups(const Product& product, std::size_t first, std::size_t last, float* y, std::size_t out) const {
        product.run(first, last);
        adapted_.add(first * kGroupOutputs, std::min(last * kGroupOutputs, out), y, out);
    }

    // Norm and rotate a head of all rows; queries go to the attention, keys and values to the cache.
    // Heads count through those of queries, keys and values.
    void place_head(const Step& step, std::size_t head, std::size_t index, float* qkv, Operand* queries) {
        const std::size_t rows = step.token_ids.size(), dim = shape_.heads.dim, half = dim / 2;
        const std::size_t num_query = shape_.heads.num_query, num_kv = shape_.heads.num_kv;
        const Layer& layer = layers_[index];
        const bool is_rotated = head < num_query + num_kv;
        Bf16 narrowed[kMostDims];
        for (std::size_t r = 0; r < rows; ++r) {
            float* own = qkv + r * shape_.qkv_size() + head * dim;
            if (is_rotated) {
                const std::size_t at = std::size_t(step.positions[r]) * half;
                if (!layer.head_norms.empty()) rms_norm_(own, layer.head_norms.data() + head * dim, shape_.eps, dim);
                rotate_(own, cos_.data() + at, sin_.data() + at, half);
            }
            if (head < num_query) {
                convert(own, dim, queries + r * shape_.q_size() + head * dim);
                continue;
            }
            convert(own, dim, narrowed);
            const auto into = [&](auto& kv) {
                if (is_rotated) {
                    kv.write_key(step.slots[r], head - num_query, narrowed);
                } else {
                    kv.write_value(step.slots[r], head - num_query - num_kv, narrowed);
                }
            };
            std::visit(into, kv_[index]);
        }
    }

    // Within a window a row sees so many tokens, itself included; by position, not by slot.
    void limit(const Step& step, std::size_t index) {
        const std::size_t window = step.windows[index];
        for (std::size_t r = 0; r < sight_.views.size(); ++r) {
            const std::size_t end = std::size_t(step.positions[r]) + 1;
            sight_.views[r].low = window == 0 || end <= window ? 0 : end - window;
        }
    }

    void transform(const Step& step, std::size_t index, float* x) {
        const std::size_t rows = step.token_ids.size(), hidden = shape_.hidden, inner = shape_.inner;
        const Layer& layer = layers_[index];
        Operand* normed = normed_.at_least(rows * hidden);
        norm_rows(x, layer.mlp_norm, rows, normed);
        float* wide = wide_.at_least(rows * std::max(shape_.qkv_size(), 2 * inner));
        Operand* activated = inner_.at_least(rows * std::max(shape_.q_size(), inner));
        adapted_.start(team_, index, 2, normed, hidden);
        const Product product(team_, layer.weights[2], normed, rows, Target{wide, 2 * inner, false}, rounded_);
        const auto activate = [&](std::size_t column, std::size_t size) {
            for (std::size_t r = 0; r < rows; ++r) {
                const float* gates = wide + r * 2 * inner + column;
                silu_times(gates, gates + inner, size, activated + r * inner + column);
            }
        };
        if (inner % kGroupOutputs == 0) {
            const std::size_t half = inner / kGroupOutputs, together = adapted_.groups_at_once(2 * rows);
            team_.share(half, [&](std::size_t first, std::size_t last) {
                for (; first < last; first += together) {
                    const std::size_t next = std::min(first + together, last);
                    run_groups(product, first, next, wide, 2 * inner);
                    run_groups(product, half + first, half + next, wide, 2 * inner);
                    activate(first * kGroupOutputs, (next - first) * kGroupOutputs);
                }
            });
        } else {
            share_groups(product, rows, wide, 2 * inner);
            team_.share(inner / kPanel, [&](std::size_t first, std::size_t last) {
                activate(first * kPanel, (last - first) * kPanel);
            });
        }
        add_product(index, 3, activated, inner, rows, x);
    }

    // Work on few rows is done sooner than it is shared.
    template <typename Task>
    void share_rows(std::size_t rows, const Task& task) {
        if (rows < 16) {
            task(std::size_t{0}, rows);
        } else {
            team_.share(rows, task);
        }
    }

    // With an output layer so large every step is shared: any row takes some hundred microseconds.
    static constexpr std::size_t kSharedBytes = std::size_t{16} << 20;

    Shape shape_;
    Arena arena_;  // of the weights
    Team team_;
    Attention attention_;
    std::vector<std::variant<PagedKV, Int8KV>> kv_;
    std::vector<Layer> layers_;
    const Bf16* embedding_ = nullptr;
    std::vector<float> final_norm_, cos_, sin_;
    Matrix lm_head_;
    std::map<std::int32_t, std::unique_ptr<Adapter>> adapters_;

    Sharing sharing_;
    AdapterStep adapted_;
    Sight sight_;
    Scratch<float> hidden_, wide_;
    Scratch<Operand> normed_, queries_, inner_;
    RoundedRows rounded_;
};

}  // namespace quickmatch::QM_ISA
