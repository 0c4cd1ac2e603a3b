// Several drafts of one sequence as one tree: the same token after the same path is one node.
//
// Mirrors merging.py, operation for operation; merging.py says what agreement and siblings are worth.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "calibration.hpp"
#include "draft.hpp"

namespace quickmatch::speculation {

// Used again from sequence to sequence: it keeps only memory.
class Merger {
  public:
    void merge(const Draft* drafts, std::size_t num_drafts, const SourceCalibration& agreement,
               Merged& out) {
        out.clear();
        chances_.clear();
        first_child_.assign(1, -1);
        next_sibling_.clear();
        for (std::size_t i = 0; i < num_drafts; ++i) add(drafts[i], agreement, out);
        share(out.tree);
        for (std::size_t i = 0; i < out.tree.size(); ++i) {
            const std::int32_t parent = out.tree[i].parent;
            out.probabilities.push_back(
                parent < 0 ? chances_[i]
                           : chances_[i] * out.probabilities[static_cast<std::size_t>(parent)]);
        }
    }

  private:
    void add(const Draft& draft, const SourceCalibration& agreement, Merged& out) {
        places_.clear();
        for (std::size_t i = 0; i < draft.tree.size(); ++i) {
            Node node = draft.tree[i];
            const auto parent = static_cast<std::size_t>(node.parent);
            const bool is_first = node.parent < 0;
            const double chance = is_first ? draft.paths[i] : draft.paths[i] / draft.paths[parent];
            node.parent = is_first ? -1 : places_[parent];
            std::int32_t place = find(out.tree, node.parent, node.token_id);
            if (place < 0) {
                place = append(out.tree, node);
                chances_.push_back(chance);
            } else {
                join(out, place, node, chance, agreement);
            }
            places_.push_back(place);
        }
    }

    // Believe the node as two drafters' that agree; the record of who is believed less is its twin.
    void join(Merged& out, std::int32_t place, const Node& node, double chance,
              const SourceCalibration& agreement) {
        Node& kept = out.tree[static_cast<std::size_t>(place)];
        double& believed = chances_[static_cast<std::size_t>(place)];
        const double together = 1.0 - (1.0 - chance) * (1.0 - believed);
        Twin twin{place, node.source, node.feature, node.confidence, together};
        if (chance > believed) {
            std::swap(twin.source, kept.source);
            std::swap(twin.feature, kept.feature);
            std::swap(twin.confidence, kept.confidence);
        }
        believed = std::max({chance, believed, agreement.probability(0, 1, together)});
        out.twins.push_back(twin);
    }

    // The child of `above` that holds the token, -1 if none does.
    std::int32_t find(const Tree& tree, std::int32_t above, Token token_id) const {
        std::int32_t child = first_child_[static_cast<std::size_t>(above + 1)];
        while (child >= 0 && tree[static_cast<std::size_t>(child)].token_id != token_id) {
            child = next_sibling_[static_cast<std::size_t>(child)];
        }
        return child;
    }

    std::int32_t append(Tree& tree, const Node& node) {
        const auto place = static_cast<std::int32_t>(tree.size());
        tree.push_back(node);
        std::int32_t& first = first_child_[static_cast<std::size_t>(node.parent + 1)];
        next_sibling_.push_back(first);
        first = place;
        first_child_.push_back(-1);
        return place;
    }

    // Leave to each node what its likelier siblings leave of a probability of 1.
    void share(const Tree& tree) {
        order_.resize(tree.size());
        std::iota(order_.begin(), order_.end(), std::size_t{0});
        std::stable_sort(order_.begin(), order_.end(), [this](std::size_t a, std::size_t b) {
            return chances_[a] > chances_[b];
        });
        taken_.assign(tree.size() + 1, 0.0);
        for (const std::size_t i : order_) {
            double& taken = taken_[static_cast<std::size_t>(tree[i].parent + 1)];
            const double left = 1.0 - taken;
            chances_[i] = std::max(std::min(chances_[i], left), 1e-6);
            taken = 1.0 - left + chances_[i];
        }
    }

    std::vector<double> chances_;  // each node's probability given its parent
    std::vector<std::int32_t> first_child_, next_sibling_;  // the first's of node i is at i + 1
    std::vector<std::int32_t> places_;                      // in the merged tree, of a draft's nodes
    std::vector<std::size_t> order_;
    std::vector<double> taken_;  // by parent + 1
};

}  // namespace quickmatch::speculation
