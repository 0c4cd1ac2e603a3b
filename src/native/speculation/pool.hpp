// All drafted tokens of a step in one line, the likeliest first, and how many of them pay.
//
// Mirrors pool.py, operation for operation; pool.py says why the choice is made so.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "draft.hpp"

namespace quickmatch::speculation {

// A number of rows of a step and the seconds that it takes, the factor on all of them left out.
struct Stair {
    std::int64_t num_rows;
    double seconds;
};

// What a step costs, by its number of rows: costs.py's staircase, as far as it is looked at.
struct Costs {
    std::vector<Stair> stairs;
    double factor = 1.0;
    double plain_s = 1.0;  // of the step without drafts
    double extra_s = 0.0;  // of this step beside the target's rows
};

// A number of nodes from the pool's beginning.
struct Choice {
    std::size_t num_nodes;
    double num_expected;  // tokens that the step emits, bonus tokens included
    double seconds;

    double tokens_per_s() const { return num_expected / seconds; }
};

class Pool {
  public:
    void clear() { likely_.clear(); }

    // Add the nodes of a sequence that are above the floor. Then `sort`.
    void add(const std::vector<double>& probabilities, std::uint32_t sequence, double floor) {
        for (std::uint32_t i = 0; i < probabilities.size(); ++i) {
            if (probabilities[i] > floor) likely_.push_back({probabilities[i], sequence, i});
        }
    }

    void sort() {
        std::stable_sort(likely_.begin(), likely_.end(), [](const Entry& a, const Entry& b) {
            return a.probability > b.probability;
        });
        sums_.clear();
        double sum = 0.0;
        for (const Entry& entry : likely_) sums_.push_back(sum += entry.probability);
    }

    std::size_t size() const { return likely_.size(); }

    // Tokens expected of the first num_nodes.
    double gain(std::size_t num_nodes) const { return num_nodes ? sums_[num_nodes - 1] : 0.0; }

    // The number of nodes with the most tokens a second, if there is any.
    std::optional<Choice> best(const Costs& costs, std::size_t num_seqs, std::size_t max_nodes) {
        const std::size_t most = std::min(size(), max_nodes);
        choices_.clear();
        double best_rate = 0.0;
        for (const Stair& stair : costs.stairs) {
            const auto num_nodes = static_cast<std::size_t>(stair.num_rows) - num_seqs;
            if (num_nodes > most) break;
            const Choice choice{num_nodes, static_cast<double>(num_seqs) + sums_[num_nodes - 1],
                                stair.seconds * costs.factor + costs.extra_s};
            choices_.push_back(choice);
            best_rate = std::max(best_rate, choice.tokens_per_s());
        }
        for (const Choice& choice : choices_) {
            if (choice.tokens_per_s() >= kGoodEnough * best_rate) return choice;
        }
        return std::nullopt;
    }

    // Put each sequence's nodes among the first num_nodes into out, the likeliest first.
    void split(std::size_t num_nodes, std::vector<std::vector<std::int32_t>>& out) const {
        for (std::size_t i = 0; i < num_nodes; ++i) {
            out[likely_[i].sequence].push_back(static_cast<std::int32_t>(likely_[i].node));
        }
    }

  private:
    static constexpr double kGoodEnough = 0.995;  // the fewest nodes that reach so much of the best

    struct Entry {
        double probability;
        std::uint32_t sequence;
        std::uint32_t node;
    };

    std::vector<Entry> likely_;
    std::vector<double> sums_;  // tokens expected of the first n
    std::vector<Choice> choices_;
};

// Puts nodes, given likeliest first, depth first along the likeliest child.
class LineUp {
  public:
    void in_line(const Tree& tree, std::vector<std::int32_t>& nodes) {
        first_.assign(tree.size() + 1, -1);
        next_.assign(tree.size(), -1);
        for (std::size_t i = nodes.size(); i-- > 0;) {
            const auto node = static_cast<std::size_t>(nodes[i]);
            std::int32_t& first = first_[static_cast<std::size_t>(tree[node].parent + 1)];
            next_[node] = first;
            first = nodes[i];
        }
        nodes.clear();
        waiting_.assign(1, first_[0]);
        while (!waiting_.empty()) {
            const std::int32_t node = waiting_.back();
            waiting_.pop_back();
            nodes.push_back(node);
            const std::int32_t sibling = next_[static_cast<std::size_t>(node)];
            const std::int32_t child = first_[static_cast<std::size_t>(node + 1)];
            if (sibling >= 0) waiting_.push_back(sibling);
            if (child >= 0) waiting_.push_back(child);
        }
    }

  private:
    std::vector<std::int32_t> first_, next_;  // children; the first of node i is at i + 1
    std::vector<std::int32_t> waiting_;
};

}  // namespace quickmatch::speculation
