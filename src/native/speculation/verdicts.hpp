// What the target's tokens teach: calibration, each sequence's record, drift.
//
// Mirrors verdicts.py, operation for operation.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "calibration.hpp"
#include "drift.hpp"
#include "request_state.hpp"

namespace quickmatch::speculation {

class Verdicts {
  public:
    Calibration calibration;
    DriftWatch drift;

    // Learn from the target's tokens, at least one; return the sources that have drifted.
    const std::vector<Source>& add(RequestState& state, const std::vector<Token>& token_ids,
                                   const std::string& scope) {
        const Merged& drafted = state.drafted;
        const Tree& tree = drafted.tree;
        const auto last = static_cast<int>(token_ids.size());
        DriftWatch::Tests& tests = drift.tests(scope);
        judged_.clear();
        depths_.assign(tree.size() + 1, last + 1);  // only of nodes that are the target's choice
        depths_[0] = 0;
        for (std::size_t i = 0; i < tree.size(); ++i) {
            const Node& node = tree[i];
            const int above = depths_[static_cast<std::size_t>(node.parent + 1)];
            if (above >= last) {
                if (drafted.is_chain) break;
                continue;
            }
            const bool is_right = node.token_id == token_ids[static_cast<std::size_t>(above)];
            if (is_right) depths_[i + 1] = above + 1;
            judge(tests, node.source, node.parent, node.feature, above + 1, node.confidence,
                  is_right);
        }
        for (const Twin& twin : drafted.twins) {
            const auto node = static_cast<std::size_t>(twin.node);
            const std::int32_t parent = tree[node].parent;
            const int above = depths_[static_cast<std::size_t>(parent + 1)];
            if (above >= last) continue;
            const bool is_right = depths_[node + 1] <= last;
            judge(tests, twin.source, parent, twin.feature, above + 1, twin.confidence, is_right);
            calibration.agreement.judge(0, 1, twin.together, is_right);
        }
        return close(state, scope);
    }

    // Learn from the end of a sequence how its drafts fared on the whole.
    void end(RequestState& state) {
        for (Source source = 0; source < kNumSources; ++source) {
            if (const auto acceptance = state.take_block(source)) {
                drift.add_block(state.scope, source, *acceptance);
            }
        }
    }

  private:
    // One source's tokens in one verdict.
    struct Judge {
        double foretold = 0.0;
        int num_right = 0;
        bool has_drifted = false;
        std::vector<std::int32_t> places;  // nodes whose children were judged
    };

    void judge(DriftWatch::Tests& tests, Source source, std::int32_t place, int feature, int depth,
               double confidence, bool is_right) {
        Judge& judge = judges_[source];
        if (std::find(judged_.begin(), judged_.end(), source) == judged_.end()) {
            judged_.push_back(source);
            judge.foretold = 0.0;
            judge.num_right = 0;
            judge.has_drifted = false;
            judge.places.clear();
        }
        const double chance =
            calibration.of(source).judge(feature, depth, confidence, is_right);
        judge.foretold += chance;
        judge.num_right += is_right;
        std::vector<std::int32_t>& places = judge.places;
        if (std::find(places.begin(), places.end(), place) == places.end()) {
            places.push_back(place);
        }
        if (tests[source].add_token(chance, is_right)) judge.has_drifted = true;
    }

    // Tell the sequence's record, the traffic's and calibration; return who has drifted.
    const std::vector<Source>& close(RequestState& state, const std::string& scope) {
        if (state.scope != scope) state.scope = scope;
        drifted_.clear();
        for (const Source source : judged_) {
            const Judge& judge = judges_[source];
            state.add(source, judge.foretold, judge.num_right);
            const auto num_places = static_cast<int>(judge.places.size());
            if (const auto acceptance = state.count(source, num_places, judge.num_right)) {
                drift.add_block(scope, source, *acceptance);
            }
            if (judge.has_drifted) {
                calibration.of(source).soften();
                drifted_.push_back(source);
            }
        }
        return drifted_;
    }

    std::array<Judge, kNumSources> judges_;
    std::vector<Source> judged_;  // in this verdict, in the order of their first token
    std::vector<Source> drifted_;
    std::vector<int> depths_;  // of node i at i + 1
};

}  // namespace quickmatch::speculation
