// The buckets of calibration: of raw confidence, of the feature, of the depth. Constants only.
//
// Mirrors calibration_grid.py, operation for operation.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace quickmatch::speculation {

constexpr int kGrid = 64;  // raw confidences are looked up in steps of 1 / kGrid
constexpr std::array<double, 12> kConfidences{0.0,  0.05, 0.12, 0.22, 0.35, 0.5,
                                              0.65, 0.78, 0.88, 0.94, 0.98, 1.0};  // centres
constexpr int kMaxFeature = 64;
constexpr int kMaxDepth = 1024;
constexpr std::array<int, 6> kFeatureEnds{2, 4, 8, 16, 32, kMaxFeature};
constexpr std::array<int, 4> kDepthEnds{1, 3, 7, kMaxDepth};
constexpr std::size_t kNumC = kConfidences.size();
constexpr std::size_t kNumF = kFeatureEnds.size();
constexpr std::size_t kNumD = kDepthEnds.size();

using ByConfidence = std::array<double, kNumC>;
using OnGrid = std::array<double, kGrid + 1>;

inline std::size_t feature_bucket(int feature) {
    return static_cast<std::size_t>(
        std::lower_bound(kFeatureEnds.begin(), kFeatureEnds.end(), feature) -
        kFeatureEnds.begin());
}

inline std::size_t depth_bucket(int depth) {
    std::size_t bucket = 0;
    while (kDepthEnds[bucket] < depth) ++bucket;
    return bucket;
}

inline std::size_t grid_place(double confidence) {
    return static_cast<std::size_t>(confidence * kGrid);
}

class ConfidenceGrid {
  public:
    ConfidenceGrid() {
        for (std::size_t i = 0; i <= kGrid; ++i) {
            const double confidence = static_cast<double>(i) / kGrid;
            bucket_[i] = 0;
            for (std::size_t c = 0; c + 1 < kNumC; ++c) {
                bucket_[i] += confidence > (kConfidences[c] + kConfidences[c + 1]) / 2;
            }
            std::size_t high = 0;
            while (confidence > kConfidences[high]) ++high;
            const std::size_t low = high > 0 ? high - 1 : 0;
            const double width = kConfidences[high] - kConfidences[low];
            low_[i] = low;
            high_[i] = high;
            share_[i] = width != 0.0 ? (confidence - kConfidences[low]) / width : 1.0;
        }
    }

    std::size_t bucket(std::size_t place) const { return bucket_[place]; }

    // The values, given at the centres, at all confidences of the grid.
    OnGrid spread(const ByConfidence& values) const {
        OnGrid out;
        for (std::size_t i = 0; i <= kGrid; ++i) {
            out[i] = values[low_[i]] * (1.0 - share_[i]) + values[high_[i]] * share_[i];
        }
        return out;
    }

  private:
    std::array<std::size_t, kGrid + 1> bucket_, low_, high_;
    OnGrid share_;  // the upper centre's
};

inline const ConfidenceGrid kConfidenceGrid;

}  // namespace quickmatch::speculation
