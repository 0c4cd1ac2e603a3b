// What a step's drafts are worth, which of them are verified, and what is learned of them.
//
// Owns every live sequence's record and the step's drafts between `gather` and `choose`. Knows
// nothing of Python; bindings are in module.cpp. One thread at a time.
//
// Mirrors plain_assessor.py and what it is made of; assessor.py says what the methods do.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "calibration.hpp"
#include "draft.hpp"
#include "merging.hpp"
#include "pool.hpp"
#include "promise.hpp"
#include "request_state.hpp"
#include "verdicts.hpp"

namespace quickmatch::speculation {

// What a step gives at best with these drafts and no others; by sequence but for the first.
struct Outlook {
    double tokens_per_s;
    std::vector<double> gains;
    std::vector<std::size_t> nodes;
    std::vector<double> model_ratios;
};

// How many nodes are chosen, and a tree for each sequence, empty where it has none.
struct Chosen {
    std::size_t num_nodes = 0;
    std::vector<Tree> trees;
};

struct Verdict {
    const std::vector<Source>& drifted;
    bool is_right;           // whether the draft began with the target's token...
    bool is_right_of_model;  // ...and a model proposed it
};

class Assessor {
  public:
    Assessor(std::size_t max_depth, double floor) : promises(max_depth), floor_(floor) {}

    Promises promises;

    std::size_t num_sequences() const { return states_.size(); }
    const DriftWatch::Drifts& drifts() const { return verdicts_.drift.drifts(); }

    bool ask(std::int64_t id, std::int64_t now, std::int64_t longest_pause) {
        return state(id, now)->ask(now, longest_pause);
    }

    // ---- a step's drafts: begin; for each sequence add drafts and merge, or keep; end

    // width, depth: of the plan that a model drafted by.
    void begin_gathering(std::int64_t now, int width, int depth, bool is_anew) {
        now_ = now;
        width_ = width;
        depth_ = depth;
        place_ = num_drafts_ = 0;
        if (is_anew) sequences_.clear();
    }

    // A place for a draft of the next sequence, which has at least one node.
    Tree& add_draft() {
        if (num_drafts_ == drafts_.size()) drafts_.emplace_back();
        Tree& tree = drafts_[num_drafts_++].tree;
        tree.clear();
        return tree;
    }

    // Merge what was added for this sequence, the next one.
    void merge(std::int64_t id) {
        if (place_ == sequences_.size()) sequences_.push_back(state(id, now_));
        RequestState& one = *sequences_[place_++];
        one.review(now_);
        one.drafted.clear();
        one.has_drafted = num_drafts_ > 0;
        if (num_drafts_ > 0) merge_drafts(one);
        num_drafts_ = 0;
    }

    // Let the next sequence keep what was merged before in this step.
    void keep() { ++place_; }

    void end_gathering() {
        pool_.clear();
        for (std::uint32_t i = 0; i < sequences_.size(); ++i) {
            pool_.add(sequences_[i]->drafted.probabilities, i, floor_);
        }
        pool_.sort();
    }

    // ---- the choice

    std::size_t num_gathered() const { return sequences_.size(); }
    std::size_t num_pooled() const { return pool_.size(); }
    double gain(std::size_t num_nodes) const { return pool_.gain(num_nodes); }

    Outlook outlook(const Costs& costs) {
        const std::size_t num_seqs = sequences_.size();
        Outlook out{rate_of_plain(costs), {}, {}, {}};
        const auto best = pool_.best(costs, num_seqs, pool_.size());
        split(best && best->tokens_per_s() > out.tokens_per_s ? best->num_nodes : 0);
        if (best) out.tokens_per_s = std::max(out.tokens_per_s, best->tokens_per_s());
        for (std::size_t i = 0; i < num_seqs; ++i) {
            double gain = 0.0;
            for (const std::int32_t node : split_[i]) gain += probability(i, node);
            out.gains.push_back(gain);
            out.nodes.push_back(split_[i].size());
            out.model_ratios.push_back(sequences_[i]->model_ratio());
        }
        return out;
    }

    Chosen choose(const Costs& costs, double margin, std::size_t max_rows, std::size_t max_nodes,
                  double least_gain) {
        const auto best = pool_.best(costs, sequences_.size(), max_rows);
        const bool is_worth = best && best->tokens_per_s() > margin * rate_of_plain(costs);
        const std::size_t num_nodes = is_worth ? best->num_nodes : 0;
        split(num_nodes);
        if (is_worth) note_help(costs, num_nodes, least_gain);
        return take(num_nodes, max_nodes);
    }

    Chosen choose_all(std::size_t max_rows, std::size_t max_nodes) {
        const std::size_t num_nodes = std::min(pool_.size(), max_rows);
        split(num_nodes);
        return take(num_nodes, max_nodes);
    }

    // ---- what is learned

    std::optional<Verdict> judge(std::int64_t id, const std::vector<Token>& token_ids,
                                 const std::string& scope, bool is_learning, bool was_plain) {
        const auto found = states_.find(id);
        if (found == states_.end() || !found->second->has_drafted || token_ids.empty()) {
            return std::nullopt;
        }
        RequestState& one = *found->second;
        one.has_drafted = false;
        const std::int32_t first = one.drafted.first_with(token_ids[0]);
        Verdict verdict{is_learning ? verdicts_.add(one, token_ids, scope) : none_, first >= 0,
                        first >= 0 && one.drafted.is_of_model(first)};
        if (was_plain && verdict.is_right) one.was_right();
        return verdict;
    }

    void refresh() { verdicts_.calibration.refresh(); }
    void renew(Source source) { verdicts_.calibration.renew(source); }

    void forget(std::int64_t id) {
        const auto found = states_.find(id);
        if (found == states_.end()) return;
        verdicts_.end(*found->second);
        states_.erase(found);
    }

  private:
    std::shared_ptr<RequestState>& state(std::int64_t id, std::int64_t now) {
        std::shared_ptr<RequestState>& known = states_[id];
        if (!known) known = std::make_shared<RequestState>(now);
        return known;
    }

    void merge_drafts(RequestState& one) {
        const Calibration& calibration = verdicts_.calibration;
        Merged& merged = one.drafted;
        Draft& first = drafts_[0];
        if (num_drafts_ == 1 && !is_model(first.tree[0].source) &&
            calibration.chain_probabilities(first.tree, one.ratios(), floor_,
                                            merged.probabilities)) {
            merged.is_chain = true;
            std::swap(merged.tree, first.tree);
            return;
        }
        for (std::size_t i = 0; i < num_drafts_; ++i) {
            Draft& draft = drafts_[i];
            calibration.path_probabilities(draft.tree, one.ratios(), floor_, draft.paths);
            if (is_model(draft.tree[0].source)) note_promise(one, draft);
        }
        if (num_drafts_ == 1) {
            std::swap(merged.tree, first.tree);
            std::swap(merged.probabilities, first.paths);
        } else {
            merger_.merge(drafts_.data(), num_drafts_, calibration.agreement, merged);
        }
    }

    // Tell what a model's tree promises; what is too unlikely to be verified is no gain.
    void note_promise(RequestState& one, const Draft& draft) {
        likely_ = draft.paths;
        for (double& path : likely_) path = path > floor_ ? path : 0.0;
        const Promises::Gain gain = promises.add(width_, depth_, draft.tree, likely_);
        one.promised(gain.promised, gain.usual);
    }

    double rate_of_plain(const Costs& costs) const {
        return static_cast<double>(sequences_.size()) / (costs.plain_s + costs.extra_s);
    }

    double probability(std::size_t sequence, std::int32_t node) const {
        return sequences_[sequence]->drafted.probabilities[static_cast<std::size_t>(node)];
    }

    void split(std::size_t num_nodes) {
        split_.resize(sequences_.size());
        for (std::vector<std::int32_t>& nodes : split_) nodes.clear();
        pool_.split(num_nodes, split_);
    }

    // Note for whom the cheap drafters' nodes were worth the asking.
    void note_help(const Costs& costs, std::size_t num_nodes, double least_gain) {
        const double price = price_of(costs, num_nodes);
        for (std::size_t i = 0; i < sequences_.size(); ++i) {
            if (!split_[i].empty() && cheap_gain(i, price) > least_gain) sequences_[i]->helped();
        }
    }

    // The tokens that could be had in the time that a node's verification takes.
    double price_of(const Costs& costs, std::size_t num_nodes) const {
        const auto num_seqs = static_cast<double>(sequences_.size());
        double seconds = 0.0;
        for (const Stair& stair : costs.stairs) {
            seconds = stair.seconds * costs.factor;
            if (static_cast<std::size_t>(stair.num_rows) == sequences_.size() + num_nodes) break;
        }
        const double tokens_per_s = (num_seqs + pool_.gain(num_nodes)) / seconds;
        return std::max(0.0, seconds - costs.plain_s) / static_cast<double>(num_nodes) *
               tokens_per_s;
    }

    // Accepted tokens to be expected, beyond the price, of nodes that no model has proposed.
    double cheap_gain(std::size_t sequence, double price) const {
        const Merged& one = sequences_[sequence]->drafted;
        const std::vector<std::int32_t>& nodes = split_[sequence];
        double gain = 0.0;
        const bool has_model = std::any_of(one.tree.begin(), one.tree.end(),
                                           [](const Node& node) { return is_model(node.source); });
        if (one.twins.empty() && !has_model) {
            for (const std::int32_t node : nodes) gain += probability(sequence, node);
            return gain - price * static_cast<double>(nodes.size());
        }
        for (const std::int32_t node : nodes) {
            const double path = probability(sequence, node);
            const bool is_twin = std::any_of(one.twins.begin(), one.twins.end(),
                                             [&](const Twin& twin) { return twin.node == node; });
            if (path > price && !is_twin &&
                !is_model(one.tree[static_cast<std::size_t>(node)].source)) {
                gain += path - price;
            }
        }
        return gain;
    }

    // The trees of the num_nodes that were split, at most max_nodes a sequence.
    Chosen take(std::size_t num_nodes, std::size_t max_nodes) {
        Chosen chosen{num_nodes, std::vector<Tree>(sequences_.size())};
        for (std::size_t i = 0; i < sequences_.size(); ++i) {
            std::vector<std::int32_t>& nodes = split_[i];
            const Merged& one = sequences_[i]->drafted;
            if (nodes.size() > max_nodes) nodes.resize(max_nodes);
            if (!one.is_chain && !nodes.empty()) line_up_.in_line(one.tree, nodes);
            cut(one.tree, nodes, chosen.trees[i]);
        }
        return chosen;
    }

    // Put the tree of these nodes, in this order, into out.
    void cut(const Tree& tree, const std::vector<std::int32_t>& nodes, Tree& out) {
        place_of_.resize(tree.size());
        for (const std::int32_t index : nodes) {
            Node node = tree[static_cast<std::size_t>(index)];
            place_of_[static_cast<std::size_t>(index)] = static_cast<std::int32_t>(out.size());
            if (node.parent >= 0) node.parent = place_of_[static_cast<std::size_t>(node.parent)];
            out.push_back(node);
        }
    }

    double floor_;  // of path probability; what is below is not looked at
    Verdicts verdicts_;
    std::unordered_map<std::int64_t, std::shared_ptr<RequestState>> states_;
    std::int64_t now_ = 0;
    int width_ = 1, depth_ = 0;
    std::vector<std::shared_ptr<RequestState>> sequences_;  // of the step
    std::size_t place_ = 0;                                 // of the next one that is gathered
    std::vector<Draft> drafts_;                             // its own are the first num_drafts_
    std::size_t num_drafts_ = 0;
    Pool pool_;
    Merger merger_;
    LineUp line_up_;
    std::vector<std::vector<std::int32_t>> split_;  // by sequence: the chosen nodes
    std::vector<double> likely_;
    std::vector<std::int32_t> place_of_;  // in a cut tree, of the nodes it keeps
    const std::vector<Source> none_;
};

}  // namespace quickmatch::speculation
