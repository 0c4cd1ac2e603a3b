// Whether a step of one row, or a head's short draft, is shared among the team's threads or done
// alone: what was quicker of late.
//
// One row takes as long as waking a helper, or half as long with one that is awake. And where another
// process wants the helper's core (a server beside the engine, on two cores), the caller waits for
// parts that a helper has begun. Which of it holds is measured, not assumed: both ways are timed, and
// the slower one is tried again now and then. Several rows are always shared.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>

namespace quickmatch::QM_ISA {

class Sharing {
  public:
    // Whether the step that begins is shared.
    bool begin(std::size_t num_rows) {
        if (num_rows > 1) return true;
        is_trial_ = num_steps_++ % kTrialEvery < kTrial;
        is_shared_ = is_better_shared_ != is_trial_;
        started_ = Clock::now();
        return is_shared_;
    }

    // The step that began last is over. num_parts: alike, by which its time is told.
    void end(std::size_t num_rows, double num_parts = 1.0) {
        if (num_rows > 1) return;
        const std::chrono::duration<double> taken = Clock::now() - started_;
        const double seconds = taken.count() / num_parts;
        double& mean = is_shared_ ? shared_s_ : alone_s_;
        if (!is_trial_) {
            mean = mean == 0 ? seconds : mean + (std::min(seconds, kMostTimes * mean) - mean) * kRate;
        } else if (const std::size_t step = (num_steps_ - 1) % kTrialEvery; step == 0) {
            trial_s_ = 0;  // the first finds helpers asleep, or is the last that they are awake for
        } else {
            trial_s_ += seconds / (kTrial - 1);
            if (step == kTrial - 1) mean = trial_s_;
        }
        if (shared_s_ > 0 && alone_s_ > 0) is_better_shared_ = shared_s_ < alone_s_;
    }

  private:
    using Clock = std::chrono::steady_clock;

    static constexpr std::size_t kTrialEvery = 256, kTrial = 5;  // steps
    static constexpr double kRate = 1.0 / 8, kMostTimes = 4;     // a stall counts, but not as a hundred steps

    std::size_t num_steps_ = kTrialEvery - 4;  // the first trial comes soon
    bool is_trial_ = false, is_shared_ = false, is_better_shared_ = false;
    double shared_s_ = 0, alone_s_ = 0;  // means of late, or of the last trial; 0: not timed yet
    double trial_s_ = 0;
    Clock::time_point started_;
};

}  // namespace quickmatch::QM_ISA
