// How often a drafted token is right, given that the path to it was.
//
// Mirrors calibration.py and isotonic.py, operation for operation, so that the two agree to the
// last bit; calibration.py says what is estimated and why.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "calibration_grid.hpp"
#include "draft.hpp"

namespace quickmatch::speculation {

constexpr double kMaxProbability = 0.985;
constexpr double kMinProbability = 0.004;

// Make the values the closest that never fall, by weighted squares.
inline void make_rising(ByConfidence& values, const ByConfidence& weights) {
    struct Run {
        double mean;
        double mass;
        std::size_t size;
    };
    std::array<Run, kNumC> runs;
    std::size_t num_runs = 0;
    for (std::size_t i = 0; i < kNumC; ++i) {
        Run run{values[i], weights[i], 1};
        while (num_runs > 0 && runs[num_runs - 1].mean > run.mean) {
            const Run& before = runs[--num_runs];
            run.mean = (before.mean * before.mass + run.mean * run.mass) / (before.mass + run.mass);
            run.mass += before.mass;
            run.size += before.size;
        }
        runs[num_runs++] = run;
    }
    std::size_t at = 0;
    for (std::size_t r = 0; r < num_runs; ++r) {
        for (std::size_t i = 0; i < runs[r].size; ++i) values[at++] = runs[r].mean;
    }
}

// Acceptance of one source's tokens.
class SourceCalibration {
  public:
    SourceCalibration() {
        for (std::size_t f = 0; f < kNumF; ++f) remake(f);
    }

    // P(a token is right | the path to it was), by place on the grid of confidence.
    const OnGrid& row(int feature, int depth) const {
        return rows_[feature_bucket(feature)][depth_bucket(depth)];
    }

    double probability(int feature, int depth, double confidence) const {
        return row(feature, depth)[grid_place(confidence)];
    }

    // Count one token whose parent was right; return the probability it had been given.
    double judge(int feature, int depth, double confidence, bool is_right) {
        const std::size_t place = grid_place(confidence), f = feature_bucket(feature);
        const std::size_t d = depth_bucket(depth);
        const std::size_t c = kConfidenceGrid.bucket(place);
        double &tested = tested_[f][d][c], &accepted = accepted_[f][d][c];
        tested += 1.0;
        if (is_right) accepted += 1.0;
        if (tested > kBound) {
            tested *= 0.5;
            accepted *= 0.5;
        }
        ++news_[f];
        has_news_ = true;
        return rows_[f][d][place];
    }

    // Between two steps: make one slice's table again if it has news enough, or its turn.
    void refresh() {
        if (!has_news_) return;
        ++num_steps_;
        if (num_steps_ % kTurnSteps == 0) {
            turn_ = (turn_ + 1) % kNumF;
            has_news_ = turn_ != 0;
            remake(turn_);
            return;
        }
        std::size_t most = 0;
        double due = -1.0;
        for (std::size_t f = 0; f < kNumF; ++f) {
            const double own = news_[f] / std::max(1.0, std::min(evidence_[f] / 8, kMaxNews));
            if (own > due) {
                due = own;
                most = f;
            }
        }
        const bool is_known = evidence_[most] > kMaxNews;
        if (due >= 1.0 && (!is_known || num_steps_ % kMinSteps == 0)) remake(most);
    }

    // Keep the tables, doubt the evidence: what is judged next counts much more.
    void soften() {
        for (std::size_t f = 0; f < kNumF; ++f) {
            for (std::size_t d = 0; d < kNumD; ++d) {
                for (double& value : tested_[f][d]) value *= kSoftened;
                for (double& value : accepted_[f][d]) value *= kSoftened;
            }
            sum(f);
            evidence_[f] = 0.0;
        }
    }

  private:
    static constexpr double kBound = 96.0;
    static constexpr double kPriors[3] = {4.0, 6.0, 10.0};
    static constexpr double kMaxNews = 64;
    static constexpr unsigned kMinSteps = 4;
    static constexpr unsigned kTurnSteps = 16;
    static constexpr double kSourcePrior = 8.0;
    static constexpr double kSoftened = 0.03;

    // The shares accepted, each shrunk to its prior, which counts for `strength` tests.
    static ByConfidence shrunk(const ByConfidence& tested, const ByConfidence& accepted,
                               const ByConfidence& priors, double strength) {
        ByConfidence out;
        for (std::size_t c = 0; c < kNumC; ++c) {
            out[c] = (accepted[c] + strength * priors[c]) / (tested[c] + strength);
        }
        return out;
    }

    static ByConfidence plus(ByConfidence values, double added) {
        for (double& value : values) value += added;
        return values;
    }

    static double total(const ByConfidence& values) {
        double sum = 0.0;
        for (const double value : values) sum += value;
        return sum;
    }

    // Sum the counts of a slice over depths.
    void sum(std::size_t f) {
        sum_tested_[f] = sum_accepted_[f] = {};
        for (std::size_t d = 0; d < kNumD; ++d) {
            for (std::size_t c = 0; c < kNumC; ++c) {
                sum_tested_[f][c] += tested_[f][d][c];
                sum_accepted_[f][c] += accepted_[f][d][c];
            }
        }
    }

    void remake(std::size_t f) {
        sum(f);
        ByConfidence all_tested{}, all_accepted{};
        for (std::size_t i = 0; i < kNumF; ++i) {
            for (std::size_t c = 0; c < kNumC; ++c) {
                all_tested[c] += sum_tested_[i][c];
                all_accepted[c] += sum_accepted_[i][c];
            }
        }
        double expected = 0.0;
        for (std::size_t c = 0; c < kNumC; ++c) expected += all_tested[c] * kConfidences[c];
        const double ratio = (total(all_accepted) + kSourcePrior) / (expected + kSourcePrior);
        ByConfidence means;
        for (std::size_t c = 0; c < kNumC; ++c) {
            means[c] = std::min(kConfidences[c] * ratio, kMaxProbability);
        }
        means = shrunk(all_tested, all_accepted, means, kPriors[0]);
        make_rising(means, plus(all_tested, kPriors[0]));
        means = shrunk(sum_tested_[f], sum_accepted_[f], means, kPriors[1]);
        for (std::size_t d = 0; d < kNumD; ++d) {
            ByConfidence values = shrunk(tested_[f][d], accepted_[f][d], means, kPriors[2]);
            make_rising(values, plus(tested_[f][d], kPriors[2]));
            for (double& v : values) v = std::min(std::max(v, kMinProbability), kMaxProbability);
            rows_[f][d] = kConfidenceGrid.spread(values);
        }
        news_[f] = 0;
        evidence_[f] = total(sum_tested_[f]);
    }

    using ByDepth = std::array<ByConfidence, kNumD>;

    std::array<ByDepth, kNumF> tested_{}, accepted_{};
    std::array<ByConfidence, kNumF> sum_tested_{}, sum_accepted_{};  // over depths
    std::array<unsigned, kNumF> news_{};
    std::array<double, kNumF> evidence_{};
    unsigned num_steps_ = 0;
    bool has_news_ = false;  // since the last round of turns
    std::size_t turn_ = 0;
    std::array<std::array<OnGrid, kNumD>, kNumF> rows_;
};

using Ratios = std::array<double, kNumSources>;  // a sequence's acceptance beside the usual

// Acceptance of the tokens of every source.
class Calibration {
  public:
    SourceCalibration agreement;  // of tokens that two drafters propose

    SourceCalibration& of(Source source) { return sources_[source]; }

    void refresh() {
        for (SourceCalibration& source : sources_) source.refresh();
        agreement.refresh();
    }

    // Forget what is known of a source: it is another one now.
    void renew(Source source) { sources_[source] = SourceCalibration(); }

    // Each node's probability that it and all before it are right.
    void path_probabilities(const Tree& tree, const Ratios& ratios, double floor,
                            std::vector<double>& out) const {
        out.clear();
        for (const Node& node : tree) {
            const double path = node.parent < 0 ? 1.0 : out[static_cast<std::size_t>(node.parent)];
            out.push_back(path < floor ? path * kHopeless : path * chance(node, ratios));
        }
    }

    // The same for a chain of one source down to the floor; false if it is none.
    bool chain_probabilities(const Tree& tree, const Ratios& ratios, double floor,
                             std::vector<double>& out) const {
        if (!is_chain(tree)) return false;
        for (const Node& node : tree) {
            if (node.source != tree[0].source || node.feature != tree[0].feature) return false;
        }
        out.clear();
        double path = 1.0;
        for (const Node& node : tree) {
            path *= chance(node, ratios);
            if (path < floor) break;
            out.push_back(path);
        }
        return true;
    }

  private:
    static constexpr double kHopeless = 0.01;  // of its parent's: one whose parent is unlikely

    double chance(const Node& node, const Ratios& ratios) const {
        const double chance =
            sources_[node.source].probability(node.feature, node.depth, node.confidence) *
            ratios[node.source];
        return chance < kMaxProbability ? chance : kMaxProbability;
    }

    std::array<SourceCalibration, kNumSources> sources_;
};

}  // namespace quickmatch::speculation
