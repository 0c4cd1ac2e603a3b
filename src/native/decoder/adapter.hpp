// Low-rank adapters of one base, and their share in a step's rows: y += (x · Aᵀ) · Bᵀ.
//
// Each adapter works on its own rows, gathered; what it adds to a row does not depend on the others.
#pragma once

#include "isa.hpp"

#if QM_HAS_DECODER
#include <array>
#include <cstddef>
#include <cstring>
#include <vector>

#include "product.hpp"

namespace quickmatch::decoder {

constexpr std::size_t kNumPlaces = 4;  // qkv, o, gate_up, down: the products of a layer

struct LowRank {
    Weight down;  // [rank, in]
    Weight up;    // [out, rank], the scaling in it
};

struct Adapter {
    Arena arena{false};  // there may be hundreds, each smaller than a large page
    std::vector<std::array<LowRank, kNumPlaces>> layers;
    std::size_t num_bytes() const {
        std::size_t total = 0;
        for (const auto& layer : layers) {
            for (const auto& low : layer) total += low.down.num_bytes() + low.up.num_bytes();
        }
        return total;
    }
};

// The rows of a step that use one adapter.
struct AdaptedRows {
    const Adapter* adapter;
    std::vector<std::size_t> rows;
};

class AdapterStep {
  public:
    std::vector<AdaptedRows> parts;

    // x: [rows, in] bfloat16; y: [rows, out], added to.
    void add(Team& team, std::size_t layer, std::size_t place, const Bf16* x, std::size_t in,
             float* y, std::size_t out) {
        for (const AdaptedRows& part : parts) {
            const LowRank& low = part.adapter->layers[layer][place];
            if (!low.down.is_empty()) add_part(team, low, part.rows, x, in, y, out);
        }
    }

  private:
    void add_part(Team& team, const LowRank& low, const std::vector<std::size_t>& rows,
                  const Bf16* x, std::size_t in, float* y, std::size_t out) {
        const std::size_t count = rows.size(), rank = low.down.out();
        const std::size_t padded = (rank + 15) / 16 * 16, narrow_size = low.up.row_size();
        Bf16* picked = picked_.at_least(count * in);
        for (std::size_t i = 0; i < count; ++i) {
            std::memcpy(picked + i * in, x + rows[i] * in, in * sizeof(Bf16));
        }
        float* inner = inner_.at_least(count * padded);
        multiply(team, low.down, picked, count, Target{inner, padded, false});
        Bf16* narrowed = narrowed_.at_least(count * narrow_size + 16);
        for (std::size_t i = 0; i < count; ++i) {
            for (std::size_t k = rank; k < padded; ++k) inner[i * padded + k] = 0.0f;
            narrow_row(inner + i * padded, narrow_size, narrowed + i * narrow_size);
        }
        float* added = added_.at_least(count * out);
        multiply(team, low.up, narrowed, count, Target{added, out, false});
        for (std::size_t i = 0; i < count; ++i) {
            float* to = y + rows[i] * out;
            for (std::size_t k = 0; k < out; ++k) to[k] += added[i * out + k];
        }
    }

    QM_AVX512 static void narrow_row(const float* from, std::size_t size, Bf16* to) {
        for (std::size_t k = 0; k < size; k += 16) {
            const std::size_t left = size - k;
            const __mmask16 mask = left >= 16 ? 0xFFFF : (1u << left) - 1;
            const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from + k)));
            _mm256_mask_storeu_epi16(to + k, mask, rounded);
        }
    }

    Scratch<Bf16> picked_, narrowed_;
    Scratch<float> inner_, added_;
};

}  // namespace quickmatch::decoder
#endif
