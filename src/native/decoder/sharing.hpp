// Whether a small step is shared among the team's threads, or done alone: what was quicker of late.
//
// A step of few rows takes as long as waking a helper, or half as long with one that is awake. And
// where another process wants the helper's core (a server beside the engine, on two cores), the
// caller waits for parts that a helper has begun. Which of it holds is measured, not assumed: both
// ways are timed by the number of rows, and the slower one is tried again now and then.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>

namespace quickmatch::decoder {

class Sharing {
  public:
    // Whether the step that begins is shared.
    bool begin(std::size_t num_rows) {
        if (num_rows > kMostRows) return true;
        Way& way = way_of(num_rows);
        way.is_trial = way.num_steps++ % kTrialEvery < kTrial;
        way.is_shared = way.is_better_shared != way.is_trial;
        started_ = Clock::now();
        return way.is_shared;
    }

    // The step that began last is over.
    void end(std::size_t num_rows) {
        if (num_rows > kMostRows) return;
        Way& way = way_of(num_rows);
        const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
        double& mean = way.is_shared ? way.shared_s : way.alone_s;
        if (!way.is_trial) {
            mean = mean == 0 ? seconds : mean + (std::min(seconds, kMostTimes * mean) - mean) * kRate;
        } else if (const std::size_t step = (way.num_steps - 1) % kTrialEvery; step == 0) {
            way.trial_s = 0;  // the first finds helpers asleep, or is the last that they are awake for
        } else {
            way.trial_s += seconds / (kTrial - 1);
            if (step == kTrial - 1) mean = way.trial_s;
        }
        if (way.shared_s > 0 && way.alone_s > 0) way.is_better_shared = way.shared_s < way.alone_s;
    }

  private:
    using Clock = std::chrono::steady_clock;

    static constexpr std::size_t kMostRows = 7;  // beyond, sharing always pays
    static constexpr std::size_t kTrialEvery = 256, kTrial = 5;  // steps
    static constexpr double kRate = 1.0 / 8, kMostTimes = 4;     // a stall counts, but not as a hundred steps

    struct Way {
        std::size_t num_steps = kTrialEvery - 4;  // the first trial comes soon
        bool is_trial = false, is_shared = false, is_better_shared = false;
        double shared_s = 0, alone_s = 0;  // means of late, or of the last trial; 0: not timed yet
        double trial_s = 0;
    };

    Way& way_of(std::size_t num_rows) { return ways_[num_rows - 1]; }

    std::array<Way, kMostRows> ways_;
    Clock::time_point started_;
};

}  // namespace quickmatch::decoder
