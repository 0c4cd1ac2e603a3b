// Keys and values of one layer in 8 bits: half the memory of PagedKV, and half the reading.
//
// Each token's key and value of each head is rounded by itself, the largest number being 127, and has
// a scale. A chunk lies as in PagedKV, but four dimensions to a dword. Keys are kept unsigned (128
// more), as the integer product wants one operand; queries are rounded to 8 bits as well.
#pragma once

#include "isa.hpp"

#if QM_HAS_DECODER
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "memory.hpp"
#include "paged_kv.hpp"
#include "rows.hpp"

namespace quickmatch::decoder {

// A head's numbers rounded to 8 bits: number ≈ code · scale.
struct RoundedHead {
    alignas(64) std::int8_t codes[kMostDims];
    float scale;
    std::int32_t sum;  // of the codes
};

// size is a multiple of 16.
QM_AVX512 inline void round_head(const Bf16* from, std::size_t size, RoundedHead& to) {
    __m512 largest = _mm512_setzero_ps();
    for (std::size_t i = 0; i < size; i += 16) {
        largest = _mm512_max_ps(largest, _mm512_abs_ps(widen16(from + i)));
    }
    const float most = _mm512_reduce_max_ps(largest);
    const __m512 inverse = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (std::size_t i = 0; i < size; i += 16) {
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(widen16(from + i), inverse));
        sum = _mm512_add_epi32(sum, rounded);
        _mm_store_si128(reinterpret_cast<__m128i*>(to.codes + i), _mm512_cvtepi32_epi8(rounded));
    }
    to.scale = most / 127.0f;
    to.sum = _mm512_reduce_add_epi32(sum);
}

class Int8KV {
  public:
    using Value = std::int8_t;
    static constexpr bool kHasScales = true;

    Int8KV(std::size_t num_slots, std::size_t num_heads, std::size_t head_dim)
        : num_heads_(num_heads),
          head_dim_(head_dim),
          keys_(num_slots * num_heads * head_dim),
          values_(num_slots * num_heads * head_dim),
          key_scales_(num_slots * num_heads),
          value_scales_(num_slots * num_heads) {}

    // dwords of four dimensions, sixteen slots each
    const std::uint8_t* keys(std::size_t chunk, std::size_t head) const {
        return keys_.data() + at(chunk, head) * head_dim_;
    }
    const float* key_scales(std::size_t chunk, std::size_t head) const {
        return key_scales_.data() + at(chunk, head);
    }
    const Value* values(std::size_t chunk, std::size_t head) const {
        return values_.data() + at(chunk, head) * head_dim_;
    }
    float value_scale(std::size_t chunk, std::size_t head, std::size_t token) const {
        return value_scales_.data()[at(chunk, head) + token];
    }
    QM_AVX512_INLINE static __m512 value16(const Value* from) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
    }

    // key, value: [head_dim]
    void write(std::size_t slot, std::size_t head, const Bf16* key, const Bf16* value) {
        RoundedHead rounded;
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
        round_head(key, head_dim_, rounded);
        std::uint8_t* keys = keys_.data() + base * head_dim_ + 4 * lane;
        for (std::size_t d = 0; d < head_dim_; ++d) {
            keys[d / 4 * 4 * kChunk + d % 4] = std::uint8_t(rounded.codes[d] + 128);
        }
        key_scales_.data()[base + lane] = rounded.scale;
        round_head(value, head_dim_, rounded);
        std::memcpy(values_.data() + (base + lane) * head_dim_, rounded.codes, head_dim_);
        value_scales_.data()[base + lane] = rounded.scale;
    }

    // See PagedKV: codes of key and value, then their scales.
    std::size_t saved_size() const { return 2 * head_dim_ + 2 * sizeof(float); }
    void save(std::size_t slot, std::size_t head, char* to) const {
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
        const std::uint8_t* keys = keys_.data() + base * head_dim_ + 4 * lane;
        for (std::size_t d = 0; d < head_dim_; d += 4) std::memcpy(to + d, keys + d * kChunk, 4);
        std::memcpy(to + head_dim_, values_.data() + (base + lane) * head_dim_, head_dim_);
        const float scales[] = {key_scales_.data()[base + lane], value_scales_.data()[base + lane]};
        std::memcpy(to + 2 * head_dim_, scales, sizeof scales);
    }
    void restore(std::size_t slot, std::size_t head, const char* from) {
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
        std::uint8_t* keys = keys_.data() + base * head_dim_ + 4 * lane;
        for (std::size_t d = 0; d < head_dim_; d += 4) std::memcpy(keys + d * kChunk, from + d, 4);
        std::memcpy(values_.data() + (base + lane) * head_dim_, from + head_dim_, head_dim_);
        float scales[2];
        std::memcpy(scales, from + 2 * head_dim_, sizeof scales);
        key_scales_.data()[base + lane] = scales[0];
        value_scales_.data()[base + lane] = scales[1];
    }

  private:
    std::size_t at(std::size_t chunk, std::size_t head) const {
        return (chunk * num_heads_ + head) * kChunk;
    }

    std::size_t num_heads_, head_dim_;
    Memory<std::uint8_t> keys_;
    Memory<Value> values_;
    Memory<float> key_scales_, value_scales_;
};

}  // namespace quickmatch::decoder
#endif
