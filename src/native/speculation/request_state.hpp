// What is known of one running sequence: how its drafts fare, and when they are asked for next.
//
// Mirrors request_state.py, operation for operation.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "calibration.hpp"
#include "draft.hpp"

namespace quickmatch::speculation {

class RequestState {
  public:
    explicit RequestState(std::int64_t now) : reviewed_(now) { ratios_.fill(1.0); }

    Merged drafted;           // in this step
    bool has_drafted = false;  // and not judged yet
    std::string scope;        // what drifts are told apart by

    const Ratios& ratios() const { return ratios_; }

    // Take in a verification: tokens of a source expected and accepted among those tested.
    void add(Source source, double foretold, double accepted) {
        accepted_[source] = accepted_[source] * kKept + accepted;
        foretold_[source] = foretold_[source] * kKept + foretold;
        set_ratio(source);
    }

    // Let what is old fade; cheap to call every step.
    void review(std::int64_t now) {
        const std::int64_t age = now - reviewed_;
        if (age < kReviewSteps) return;
        reviewed_ = now;
        const double kept = std::pow(kFading, static_cast<double>(age));
        for (Source source = 0; source < kNumSources; ++source) {
            accepted_[source] *= kept;
            foretold_[source] *= kept;
            set_ratio(source);
        }
        gain_ *= kept;
        usual_ *= kept;
    }

    // Count places where a source had a draft; return the acceptance of each full block.
    std::optional<double> count(Source source, int num_tested, int num_right) {
        Block& block = blocks_[source];
        block.num_tested += num_tested;
        block.num_right += num_right;
        if (block.num_tested < kBlock) return std::nullopt;
        return take_block(source, kBlock);
    }

    // A source's acceptance since the last block, if as many places were judged.
    std::optional<double> take_block(Source source, int least = kLeastBlock) {
        const Block block = blocks_[source];
        blocks_[source] = {};
        if (block.num_tested < least) return std::nullopt;
        return static_cast<double>(block.num_right) / block.num_tested;
    }

    // Take in how many accepted tokens a model's tree promises, and what is usual.
    void promised(double gain, double usual) {
        gain_ = gain_ * kKept + gain;
        usual_ = usual_ * kKept + usual;
    }

    // What a model drafter promises here, beside the usual.
    double model_ratio() const {
        return std::min((kPrior + gain_) / (kPrior + usual_), kMaxRatio);
    }

    // Return whether to draft now. The pause doubles while drafts are of no use.
    bool ask(std::int64_t now, std::int64_t longest_pause) {
        if (is_asked_) {  // the last draft was not worth a verification
            is_asked_ = false;
            if (++misses_ > kPatience) {
                const auto pause = std::int64_t{1} << std::min(misses_ - kPatience, 5);
                next_ask_ = now + std::min(pause, longest_pause) - 1;
            }
        }
        if (now < next_ask_) return false;
        is_asked_ = true;
        return true;
    }

    // Note that a draft began well, though it was not worth its verification: ask again.
    void was_right() { next_ask_ = 0; }

    // Note that a draft was worth its verification.
    void helped() {
        is_asked_ = false;
        misses_ = 0;
        next_ask_ = 0;
    }

  private:
    static constexpr double kPrior = 3.0;
    static constexpr double kKept = 0.9;
    static constexpr double kFading = 0.985;
    static constexpr std::int64_t kReviewSteps = 16;
    static constexpr double kMaxRatio = 2.5;
    static constexpr int kPatience = 4;
    static constexpr int kBlock = 64;
    static constexpr int kLeastBlock = 8;

    struct Block {
        int num_tested = 0;
        int num_right = 0;
    };

    void set_ratio(Source source) {
        const double ratio = (kPrior + accepted_[source]) / (kPrior + foretold_[source]);
        ratios_[source] = std::min(ratio, kMaxRatio);
    }

    Ratios ratios_;
    std::array<double, kNumSources> accepted_{}, foretold_{};
    std::array<Block, kNumSources> blocks_{};  // since the last full one
    double gain_ = 0.0;   // accepted tokens that a model's trees promised
    double usual_ = 0.0;  // and what they promise as a rule
    std::int64_t reviewed_;
    bool is_asked_ = false;
    int misses_ = 0;
    std::int64_t next_ask_ = 0;
};

}  // namespace quickmatch::speculation
