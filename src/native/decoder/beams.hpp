// Grows a draft tree level by level, from what a head says of each level's rows.
//
// Mirrors beams.py: at every level the `width` likeliest paths are gone on with, all that were
// looked at are candidates, and the likeliest make the tree.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

namespace quickmatch::QM_ISA {

struct DraftedTree {
    std::vector<std::int32_t> token_ids, parents;
    std::vector<double> confidences;
};

class Beam {
  public:
    std::vector<std::int32_t> nodes{-1};  // of the level to go on from; -1: the last token
    std::vector<std::size_t> rows;        // of their parents, among the level's before

    // Add the likeliest tokens behind row `row` of the level, best first.
    void look(std::size_t row, const std::vector<std::pair<double, std::int32_t>>& likeliest,
              double min_path) {
        const std::int32_t parent = nodes[row];
        const double path = parent < 0 ? 1.0 : paths_[parent];
        for (const auto& [confidence, token_id] : likeliest) {
            if (!(path * confidence >= min_path)) break;  // nor what is no number
            added_.push_back({-path * confidence, std::int32_t(tree_.token_ids.size()), row});
            tree_.token_ids.push_back(token_id);
            tree_.parents.push_back(parent);
            tree_.confidences.push_back(confidence);
            paths_.push_back(path * confidence);
        }
    }

    // End a level: keep the `width` likeliest of what was added to go on from; those whose path is
    // below least_path are not gone on from.
    void narrow(std::size_t width, double least_path) {
        std::sort(added_.begin(), added_.end());
        nodes.clear();
        rows.clear();
        for (std::size_t i = 0; i < std::min(width, added_.size()); ++i) {
            if (-added_[i].minus_path < least_path) break;
            nodes.push_back(added_[i].node);
            rows.push_back(added_[i].row);
        }
        added_.clear();
    }

    std::int32_t token(std::int32_t node) const { return tree_.token_ids[node]; }

    // The max_nodes likeliest nodes, the likeliest first: a tree again.
    DraftedTree best(std::size_t max_nodes) const {
        std::vector<std::int32_t> order(paths_.size());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = std::int32_t(i);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::int32_t a, std::int32_t b) { return paths_[a] > paths_[b]; });
        if (order.size() > max_nodes) order.resize(max_nodes);
        std::vector<std::int32_t> place(paths_.size(), -1);
        DraftedTree out;
        for (const std::int32_t node : order) {
            place[node] = std::int32_t(out.token_ids.size());
            const std::int32_t parent = tree_.parents[node];
            out.token_ids.push_back(tree_.token_ids[node]);
            out.parents.push_back(parent < 0 ? -1 : place[parent]);
            out.confidences.push_back(tree_.confidences[node]);
        }
        return out;
    }

  private:
    struct Added {
        double minus_path;
        std::int32_t node;
        std::size_t row;
        bool operator<(const Added& other) const {
            return std::tie(minus_path, node) < std::tie(other.minus_path, other.node);
        }
    };

    DraftedTree tree_;
    std::vector<double> paths_;
    std::vector<Added> added_;
};

}  // namespace quickmatch::QM_ISA
