// What a model drafter's trees promise: expected accepted tokens of each level, by width.
//
// Mirrors promise.py, operation for operation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "draft.hpp"

namespace quickmatch::speculation {

constexpr double kPrior = 1.0;          // trees
constexpr double kKept = 1 - 1.0 / 64;  // of what was seen, from tree to tree
constexpr double kSoftened = 0.05;

// Expected accepted tokens of each level of trees of one width.
class Promise {
  public:
    Promise(std::size_t max_depth, double misses_left)
        : above_(max_depth, 0.0), mass_(max_depth, 0.0), misses_left_(misses_left) {}

    // Take in a tree that was to have so many levels. Where it stopped before, the next would have
    // brought nothing; deeper levels fade too: what was seen there is old.
    void add(const std::vector<double>& levels, std::size_t depth) {
        scale(kKept);
        double above = 1.0;
        const std::size_t size = std::min(levels.size(), mass_.size());
        for (std::size_t d = 0; d < size; ++d) {
            above_[d] += above;
            mass_[d] += levels[d];
            above = levels[d];
        }
        if (size < std::min(depth, mass_.size())) above_[size] += above;
    }

    void soften() { scale(kSoftened); }

    // Each level's share of the one before; narrow: those of width 1, by which one of a width that
    // is hardly known is guessed.
    std::vector<double> shares(const std::vector<double>* narrow) const {
        double share = kFirst;
        std::vector<double> out;
        for (std::size_t d = 0; d < mass_.size(); ++d) {
            if (narrow != nullptr) share = 1.0 - (1.0 - (*narrow)[d]) * misses_left_;
            share = std::min((mass_[d] + kPrior * share) / (above_[d] + kPrior), 0.99);
            out.push_back(share);
        }
        return out;
    }

  private:
    static constexpr double kFirst = 0.7;

    void scale(double factor) {
        for (double& value : above_) value *= factor;
        for (double& value : mass_) value *= factor;
    }

    std::vector<double> above_;  // mass of the level before, in trees that have this one
    std::vector<double> mass_;
    double misses_left_;
};

// Those of all widths.
class Promises {
  public:
    explicit Promises(std::size_t max_depth) : max_depth_(max_depth) { renew(); }

    // Forget what was promised: it is another drafter now.
    void renew() {
        by_width_ = {Promise(max_depth_, 1.0), Promise(max_depth_, 0.75),
                     Promise(max_depth_, 0.6)};
        totals_.resize(by_width_.size());
        behind_ = num_trees_ = 0.0;
        for (const int width : {1, 2, 4}) look(width);
    }

    void soften() {
        for (Promise& promise : by_width_) promise.soften();
        behind_ *= kSoftened;
        num_trees_ *= kSoftened;
    }

    // At [depth - 1] the expected accepted tokens of all levels down to depth, as of now. What is
    // usual for a width stays what it was when it was looked at.
    const std::vector<double>& look(int width) {
        const std::size_t place = place_of(width);
        std::vector<double> shares = by_width_[0].shares(nullptr);
        if (place > 0) shares = by_width_[place].shares(&shares);
        std::vector<double>& totals = totals_[place];
        totals.clear();
        double mass = 1.0, total = 0.0;
        for (const double share : shares) {
            mass *= share;
            total += mass;
            totals.push_back(total);
        }
        return totals;
    }

    struct Gain {
        double promised;  // accepted tokens
        double usual;     // of a tree as deep
    };

    // Accepted tokens expected behind a tree: of what others drafted where it ends.
    double behind() const { return behind_ / (num_trees_ + kPrior); }

    // Take in a drafted tree, which has at least one node of a model's; what others went on with
    // comes last. depth: levels that were asked for.
    Gain add(int width, int depth, const Tree& tree, const std::vector<double>& paths) {
        const std::size_t place = place_of(width);
        std::size_t num_own = 0;
        while (num_own < tree.size() && is_model(tree[num_own].source)) ++num_own;
        behind_ *= kKept;
        num_trees_ = num_trees_ * kKept + 1.0;
        for (std::size_t i = num_own; i < tree.size(); ++i) behind_ += paths[i];
        find_levels(tree, num_own, paths);
        const std::vector<double>& totals = totals_[place];
        const double usual = totals[std::min(levels_.size(), totals.size()) - 1];
        const auto asked = static_cast<std::size_t>(depth);
        by_width_[place].add(levels_, asked);
        if (place > 0) by_width_[0].add(best_path_, asked);
        double promised = 0.0;
        for (const double level : levels_) promised += level;
        return {promised, usual};
    }

  private:
    static std::size_t place_of(int width) {
        if (width != 1 && width != 2 && width != 4) {
            throw std::out_of_range("a width is 1, 2 or 4");
        }
        return static_cast<std::size_t>(width / 2);
    }

    // The expected accepted tokens of each level of a tree's first nodes, and of the likeliest path.
    void find_levels(const Tree& tree, std::size_t size, const std::vector<double>& paths) {
        int deepest = 0;
        for (std::size_t i = 0; i < size; ++i) deepest = std::max(deepest, tree[i].depth);
        levels_.assign(static_cast<std::size_t>(deepest), 0.0);
        best_path_ = levels_;
        ends_.assign(levels_.size() + 1, 0);  // the likeliest path's node at each depth
        ends_[0] = -1;
        for (std::size_t i = 0; i < size; ++i) {
            const auto depth = static_cast<std::size_t>(tree[i].depth);
            levels_[depth - 1] += paths[i];
            if (paths[i] > best_path_[depth - 1] && tree[i].parent == ends_[depth - 1]) {
                best_path_[depth - 1] = paths[i];
                ends_[depth] = static_cast<std::int32_t>(i);
            }
        }
    }

    std::size_t max_depth_;
    std::vector<Promise> by_width_;            // 1, 2, 4
    std::vector<std::vector<double>> totals_;  // when they were looked at
    double behind_ = 0.0, num_trees_ = 0.0;
    std::vector<double> levels_, best_path_;
    std::vector<std::int32_t> ends_;
};

}  // namespace quickmatch::speculation
