// A trained head in one call a draft: one layer over the target's hidden states, several levels deep.
//
// The layer is head_layer.hpp; the drafter's part is head.py's, which says what the names mean.
// Keys and values of rows that stand lie at the target's slots. Those of drafted rows lie in chunks of
// their own behind them, which begin with a copy of the sequence's last chunk where that is not full:
// so a draft that is thrown away leaves no trace.
#pragma once

#include "isa.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "beams.hpp"
#include "head_layer.hpp"
#include "paged_kv.hpp"
#include "sharing.hpp"
#include "team.hpp"

namespace quickmatch::QM_ISA {

struct Request {
    std::int64_t sequence_id;
    std::int64_t end;  // tokens of the sequence
    std::int32_t last_token;
};

class Head {
  public:
    Head(HeadShape shape, HeadWeights weights, Team& team)
        : shape_(shape),
          team_(team),
          layer_(shape, std::move(weights), team, shape.num_slots + kMaxTogether * kScratchChunks * kChunk) {}

    std::size_t num_bytes() const { return layer_.num_bytes(); }

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
                                   std::size_t width, std::size_t max_nodes, double min_path,
                                   double least_path) {
        std::vector<DraftedTree> out(requests.size());
        std::vector<std::size_t> ready;
        for (std::size_t i = 0; i < requests.size(); ++i) {
            if (is_ready(requests[i])) ready.push_back(i);
        }
        if (ready.empty() || depth == 0) return out;
        width = std::min({width, shape_.draft_vocab, HeadLayer::kMaxWidth});
        depth = std::min(depth, kMaxDrafted / width);
        const bool is_small = ready.size() * width < kSharedRows;
        team_.set_active(!is_small || sharing_.begin(1));
        num_levels_ = 0;
        for (std::size_t first = 0; first < ready.size(); first += kMaxTogether) {
            const std::size_t last = std::min(first + kMaxTogether, ready.size());
            draft_some(requests, {ready.begin() + first, ready.begin() + last}, depth, width,
                       max_nodes, min_path, least_path, out);
        }
        if (is_small) sharing_.end(1, kFirstLevel + double(num_levels_));
        return out;
    }

  private:
    static constexpr std::size_t kSharedRows = 8;
    static constexpr double kFirstLevel = 1.5;  // levels that the first one's rows take more
    static constexpr std::size_t kMaxPending = 64, kMaxTogether = 64;
    static constexpr std::size_t kMaxDrafted = 256;                          // rows a sequence
    static constexpr std::size_t kScratchChunks = kMaxDrafted / kChunk + 1;  // a sequence

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
        Operand* features = features_.at_least(rows * size);
        rows_.clear();
        std::size_t row = 0;
        for (std::size_t i = 0; i < waiting.size(); ++i) {
            Pending& pending = *waiting[i];
            const std::size_t count = counts[i];
            convert(pending.features.data(), count * size, features + row * size);
            for (std::size_t k = 0; k < count; ++k) {
                rows_.token_ids.push_back(pending.next_tokens[k]);
                rows_.positions.push_back(pending.start + k);
                rows_.slots.push_back(slot(pending, pending.start + k));
            }
            row += count;
            pending.start += count;
            pending.next_tokens.erase(pending.next_tokens.begin(), pending.next_tokens.begin() + count);
            pending.features.erase(pending.features.begin(), pending.features.begin() + count * size);
        }
        float* g = residual_.at_least(rows * shape_.hidden);
        layer_.fuse(features, rows, g);
        layer_.project(rows_, g);
    }

    void draft_some(const std::vector<Request>& requests, const std::vector<std::size_t>& chosen,
                    std::size_t depth, std::size_t width, std::size_t max_nodes, double min_path,
                    double least_path, std::vector<DraftedTree>& out) {
        std::vector<Drafting> all(chosen.size());
        first_level(requests, chosen, width, all);
        for (std::size_t level = 0;; ++level) {
            ++num_levels_;
            bool is_alive = false;
            for (Drafting& one : all) {
                for (std::size_t row = 0; row < one.beam.nodes.size(); ++row) {
                    one.beam.look(row, layer_.likeliest()[one.level_rows[row]], min_path);
                }
                one.beam.narrow(width, least_path);
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
        Operand* queries = last_queries_.at_least(chosen.size() * q_size);
        rows_.clear();
        sight_.clear();
        std::size_t row = 0;
        for (std::size_t i = 0; i < chosen.size(); ++i) {
            row += counts[i];
            std::memcpy(m + i * hidden, residual_.at_least(0) + (row - 1) * hidden, hidden * sizeof(float));
            std::memcpy(queries + i * q_size, layer_.queries() + (row - 1) * q_size, q_size * sizeof(Operand));
            Drafting& one = all[i];
            one.length = waiting[i]->start;
            one.num_added = 0;
            one.level_rows = {i};
            const std::size_t num_chunks = (one.length + kChunk - 1) / kChunk;
            for (std::size_t c = 0; c < num_chunks; ++c) {
                one.chunks.push_back(std::uint32_t(slot(*waiting[i], c * kChunk) / kChunk));
            }
            rows_.spans.push_back(Span{i, 1, one.length - 1, kNoTree, one.chunks});
            sight_.views.push_back(View{0, one.length, one.length});
        }
        layer_.finish(chosen.size(), queries, rows_.spans, sight_, m, width);
        for (std::size_t i = 0; i < all.size(); ++i) to_scratch(i, all[i]);
    }

    // From here on a sequence's last chunk, if not full, and those behind it are its own copies.
    void to_scratch(std::size_t index, Drafting& one) {
        const std::size_t num_full = one.length / kChunk;
        const std::size_t first = shape_.num_slots / kChunk + index * kScratchChunks;
        PagedKV& kv = layer_.kv();
        std::vector<char> saved(kv.saved_size());
        for (std::size_t token = num_full * kChunk; token < one.length; ++token) {
            for (std::size_t head = 0; head < shape_.heads.num_kv; ++head) {
                kv.save(one.chunks[num_full] * kChunk + token % kChunk, head, saved.data());
                kv.restore(first * kChunk + token % kChunk, head, saved.data());
            }
        }
        one.chunks.resize(num_full);
        for (std::size_t c = 0; c < kScratchChunks; ++c) one.chunks.push_back(std::uint32_t(first + c));
    }

    // Run the rows that the beams go on from; the m of their parents stands in for g.
    void next_level(std::vector<Drafting>& all, std::size_t width) {
        const std::size_t hidden = shape_.hidden;
        rows_.clear();
        sight_.clear();
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
                rows_.token_ids.push_back(one.beam.token(one.beam.nodes[i]));
                rows_.positions.push_back(one.length + lineage.size() - 1);
                rows_.slots.push_back(one.chunks[at / kChunk] * kChunk + at % kChunk);
                sight_.views.push_back(see(one, lineage, at));
                level_rows.push_back(parents.size());
                parents.push_back(one.level_rows[parent]);
                lineages.push_back(std::move(lineage));
            }
            rows_.spans.push_back(Span{start, parents.size() - start, one.length + first_added, kNoTree, one.chunks});
            one.lineages = std::move(lineages);
            one.level_rows = std::move(level_rows);
        }
        const std::size_t rows = parents.size();
        float* g = residual_.at_least(rows * hidden);
        for (std::size_t r = 0; r < rows; ++r) {
            std::memcpy(g + r * hidden, m_.at_least(0) + parents[r] * hidden, hidden * sizeof(float));
        }
        layer_.project(rows_, g);
        float* m = m_.at_least(rows * hidden);
        std::memcpy(m, g, rows * hidden * sizeof(float));
        layer_.finish(rows, layer_.queries(), rows_.spans, sight_, m, width);
    }

    // A drafted row sees all that stands, its ancestors and itself.
    View see(const Drafting& one, const std::vector<std::size_t>& lineage, std::size_t at) {
        View view{0, at + 1, one.length};
        if (lineage.size() == one.num_added) return view;  // a chain: all before it
        sight_.mark(view, at + 1, [&](const auto& see) {
            for (const std::size_t row : lineage) see(one.length + row);
        });
        return view;
    }

    HeadShape shape_;
    Team& team_;
    Sharing sharing_;  // of drafts of few rows
    HeadLayer layer_;
    std::size_t num_levels_ = 0;  // of the last draft
    std::map<std::int64_t, Pending> pending_;

    HeadRows rows_;
    Sight sight_;
    Scratch<Operand> features_, last_queries_;
    Scratch<float> residual_, m_;
};

}  // namespace quickmatch::QM_ISA
