// KV that is given up: of a sequence's tokens each head keeps those whose keys are least like the rest.
//
// A key that points the same way as all others draws little attention of its own; one that stands out
// draws much (KeyDiff, arXiv 2504.15364). The sequence's first and last tokens stay in any case.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace quickmatch::QM_ISA {

struct Eviction {
    const std::vector<std::int32_t>&sources, &targets;  // slots; as many tokens stay as there are targets
    std::size_t num_first, num_last;                    // that stay in any case
};

// Tokens that stay, in order. directions: [tokens, size], each of length one.
inline std::vector<std::size_t> tokens_to_keep(const std::vector<float>& directions, std::size_t size,
                                               std::size_t num_kept, std::size_t num_first,
                                               std::size_t num_last) {
    const std::size_t num_tokens = directions.size() / size;
    std::vector<float> sum(size), likeness(num_tokens);
    for (std::size_t t = 0; t < num_tokens; ++t) {
        for (std::size_t d = 0; d < size; ++d) sum[d] += directions[t * size + d];
    }
    for (std::size_t t = 0; t < num_tokens; ++t) {
        const float* own = directions.data() + t * size;
        likeness[t] = std::inner_product(own, own + size, sum.data(), 0.0f);
    }
    std::vector<std::size_t> kept(num_tokens);
    std::iota(kept.begin(), kept.end(), std::size_t{0});
    const auto begin = kept.begin() + num_first, end = kept.end() - num_last;
    const auto middle = begin + (num_kept - num_first - num_last);
    std::nth_element(begin, middle, end, [&](std::size_t a, std::size_t b) {
        return likeness[a] < likeness[b] || (likeness[a] == likeness[b] && a < b);
    });
    kept.erase(middle, end);
    std::sort(kept.begin(), kept.end());
    return kept;
}

// Draw one head's keys and values together.
template <typename KV>
void evict_head(KV& kv, std::size_t head, std::size_t head_dim, const Eviction& eviction) {
    const std::size_t size = kv.saved_size(), num_tokens = eviction.sources.size();
    std::vector<char> saved(num_tokens * size);
    std::vector<float> directions(num_tokens * head_dim);
    for (std::size_t t = 0; t < num_tokens; ++t) {
        float* own = directions.data() + t * head_dim;
        kv.save(eviction.sources[t], head, saved.data() + t * size);
        KV::key_of(saved.data() + t * size, head_dim, own);
        const float square = std::inner_product(own, own + head_dim, own, 0.0f);
        const float factor = 1.0f / std::max(std::sqrt(square), 1e-12f);
        for (std::size_t d = 0; d < head_dim; ++d) own[d] *= factor;
    }
    const std::vector<std::size_t> kept = tokens_to_keep(directions, head_dim, eviction.targets.size(),
                                                         eviction.num_first, eviction.num_last);
    for (std::size_t i = 0; i < kept.size(); ++i) {
        kv.restore(eviction.targets[i], head, saved.data() + kept[i] * size);
    }
}

}  // namespace quickmatch::QM_ISA
