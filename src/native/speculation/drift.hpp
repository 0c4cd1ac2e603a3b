// Notices that drafts have become worse, or better, than before. Mirrors drift.py.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <deque>
#include <string>
#include <unordered_map>

#include "draft.hpp"

namespace quickmatch::speculation {

// Tells when the mean of a sequence of numbers has risen above zero.
class PageHinkley {
  public:
    PageHinkley(double tolerance, double threshold)
        : tolerance_(tolerance), threshold_(threshold) {}

    // Take one number in; return whether it gives the alarm, after which the test restarts.
    bool add(double value) {
        const double excess = excess_ + value - tolerance_;
        if (excess > threshold_) {
            excess_ = 0.0;
            return true;
        }
        excess_ = excess > 0.0 ? excess : 0.0;
        return false;
    }

  private:
    double tolerance_, threshold_;
    double excess_ = 0.0;  // of the sum over its lowest so far
};

// The tests of one source in one scope.
class DriftTest {
  public:
    // Take in one judged token; return whether calibration is to doubt itself.
    bool add_token(double foretold, bool is_right) {
        if (foretold > kTelling && fall_.add(foretold - is_right)) return true;
        return rise_.add(is_right - foretold);
    }

    // Take in a block of a request's tokens; return whether the traffic has drifted.
    bool add_block(double acceptance) {
        const bool is_known = num_blocks_ >= kNumFirst;
        const bool has_drifted = is_known && requests_.add(mean_ - acceptance);
        num_blocks_ = has_drifted ? 1 : std::min(num_blocks_ + 1, kMemory);
        mean_ += (acceptance - mean_) / num_blocks_;
        return has_drifted;
    }

  private:
    static constexpr double kTelling = 0.25;
    static constexpr int kMemory = 64;
    static constexpr int kNumFirst = 8;

    PageHinkley fall_{0.1, 10.0};
    PageHinkley rise_{0.15, 5.0};
    PageHinkley requests_{0.1, 4.0};
    double mean_ = 0.0;
    int num_blocks_ = 0;
};

// The tests of all sources and scopes.
class DriftWatch {
  public:
    using Tests = std::array<DriftTest, kNumSources>;

    using Drifts = std::unordered_map<std::string, std::size_t>;

    // Of the traffic, ever, by scope; only where there were any.
    const Drifts& drifts() const { return drifts_; }

    // The tests of a scope; the oldest scopes are forgotten.
    Tests& tests(const std::string& scope) {
        const auto [found, is_new] = tests_.try_emplace(scope);
        if (is_new) {
            order_.push_back(scope);
            if (order_.size() > kMaxScopes) {
                tests_.erase(order_.front());
                order_.pop_front();
            }
        }
        return found->second;
    }

    void add_block(const std::string& scope, Source source, double acceptance) {
        if (tests(scope)[source].add_block(acceptance)) ++drifts_[scope];
    }

  private:
    static constexpr std::size_t kMaxScopes = 1024;

    Drifts drifts_;
    std::unordered_map<std::string, Tests> tests_;
    std::deque<std::string> order_;  // of their creation
};

}  // namespace quickmatch::speculation
