// Keys and values of one layer in 8 bits: half the memory of PagedKV, and half the reading.
//
// Each token's key and value of each head is rounded by itself, the largest number being 127, and has
// a scale. A chunk lies as in PagedKV, but four dimensions to a dword. Keys are kept unsigned (128
// more), as the integer product wants one operand; queries are rounded to 8 bits as well.
#pragma once

#include "isa.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "memory.hpp"
#include "paged_kv.hpp"
#include "rows.hpp"

namespace quickmatch::QM_ISA {

// A head's numbers rounded to 8 bits: number ≈ code · scale.
struct RoundedHead {
    alignas(64) std::int8_t codes[kMostDims];
    float scale;
    std::int32_t sum;  // of the codes
};

template <typename Number>
inline void round_head(const Number* from, std::size_t size, RoundedHead& to) {
    const Rounded rounded = round_to_int8(from, size, to.codes);
    to.scale = rounded.most / 127.0f;
    to.sum = rounded.sum;
}

class Int8KV {
  public:
    using Value = std::int8_t;
    using Query = RoundedHead;

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

    // key, value: [head_dim]
    void write_key(std::size_t slot, std::size_t head, const Bf16* key) {
        RoundedHead rounded;
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
        round_head(key, head_dim_, rounded);
        std::uint8_t* keys = keys_.data() + base * head_dim_ + 4 * lane;
        for (std::size_t d = 0; d < head_dim_; ++d) {
            keys[d / 4 * 4 * kChunk + d % 4] = std::uint8_t(rounded.codes[d] + 128);
        }
        key_scales_.data()[base + lane] = rounded.scale;
    }
    void write_value(std::size_t slot, std::size_t head, const Bf16* value) {
        RoundedHead rounded;
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
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

    // Its direction: the scale is left out.
    static void key_of(const char* saved, std::size_t head_dim, float* to) {
        for (std::size_t d = 0; d < head_dim; ++d) to[d] = float(std::uint8_t(saved[d])) - 128.0f;
    }

    // ---- attention: see attention.hpp, and PagedKV

    void prepare(const Operand* from, Query& to) const { round_head(from, head_dim_, to); }

    template <int kQueries>
    QM_INLINE void score(std::size_t head, const std::size_t* chunks, const char* const* ahead,
                                const Query* queries, F16 (&sums)[kAbreast][kQueries]) const {
        const std::uint8_t* own[kAbreast];
        I16 whole[kAbreast][kQueries];
        QM_UNROLL
        for (std::size_t i = 0; i < kAbreast; ++i) {
            own[i] = keys(chunks[i], head);
            QM_UNROLL
            for (int q = 0; q < kQueries; ++q) whole[i][q] = all_i32(-128 * queries[q].sum);
        }
        for (std::size_t p = 0; p < head_dim_ / 4; ++p) {
            QM_UNROLL
            for (std::size_t i = 0; i < kAbreast; ++i) {
                _mm_prefetch(ahead[i] + p * kLine, _MM_HINT_T0);
                const I16 key = load_i(own[i] + p * 4 * kChunk);
                QM_UNROLL
                for (int q = 0; q < kQueries; ++q) {
                    std::int32_t four;
                    std::memcpy(&four, queries[q].codes + 4 * p, sizeof four);
                    whole[i][q] = dot_bytes(whole[i][q], key, all_i32(four));
                }
            }
        }
        QM_UNROLL
        for (std::size_t i = 0; i < kAbreast; ++i) {
            const F16 scales = load(key_scales(chunks[i], head));
            QM_UNROLL
            for (int q = 0; q < kQueries; ++q) {
                const F16 both = mul(scales, all(queries[q].scale));
                sums[i][q] = mul(to_float(whole[i][q]), both);
            }
        }
    }

    template <int kQueries, int kParts>
    QM_KERNEL void add_values(std::size_t head, const Chunks& some, std::size_t offset, const Operand* weights,
                              std::size_t row_size, float* to) const {
        F16 sums[kQueries][kParts];
        load_sums(sums, to, head_dim_);
        for (std::size_t c = some.first; c < some.last; ++c, weights += kChunk) {
            const Value* own = values(some.chunks[c], head) + offset;
            const Value* ahead = values(some.ahead(c), head) + offset;
            const std::size_t count = some.num_tokens(c);
            for (std::size_t token = 0; token < count; ++token) {
                _mm_prefetch(reinterpret_cast<const char*>(ahead + token * head_dim_), _MM_HINT_T0);
                const float scale = value_scale(some.chunks[c], head, token);
                F16 value[kParts];
                QM_UNROLL
                for (int d = 0; d < kParts; ++d) value[d] = whole16(own + token * head_dim_ + d * 16);
                QM_UNROLL
                for (int q = 0; q < kQueries; ++q) {
                    const F16 factor = all(widen(weights[q * row_size + token]) * scale);
                    QM_UNROLL
                    for (int d = 0; d < kParts; ++d) sums[q][d] = fma(factor, value[d], sums[q][d]);
                }
            }
        }
        store_sums(sums, to, head_dim_);
    }

    QM_KERNEL void add_two(std::size_t head, const Token& first, const Token& second, float* to) const {
        for (const Token& token : {first, second}) {
            const float scale = value_scale(token.chunk, head, token.lane);
            const F16 factor = all(widen(token.weight) * scale);
            const Value* own = values(token.chunk, head) + token.lane * head_dim_;
            for (std::size_t d = 0; d < head_dim_; d += 16) {
                const F16 sum = load(to + d);
                store(to + d, fma(factor, whole16(own + d), sum));
            }
        }
    }

  private:
    QM_INLINE static F16 whole16(const Value* from) {
        return to_float(widen_i8(from));
    }

    std::size_t at(std::size_t chunk, std::size_t head) const {
        return (chunk * num_heads_ + head) * kChunk;
    }

    std::size_t num_heads_, head_dim_;
    Memory<std::uint8_t> keys_;
    Memory<Value> values_;
    Memory<float> key_scales_, value_scales_;
};

}  // namespace quickmatch::QM_ISA
