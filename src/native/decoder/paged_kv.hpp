// Keys and values of one layer, by slot, laid out as attention reads them.
//
// Sixteen slots are a chunk. A key head's chunk of keys lies dimension first: dword (pair of
// dimensions, slot), so that one product scores sixteen tokens. Its chunk of values lies token
// first. Chunks of a block are neighbours, so that a block's size may be any multiple of 16.
#pragma once

#include "isa.hpp"

#if QM_HAS_DECODER
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.hpp"
#include "rows.hpp"

namespace quickmatch::decoder {

constexpr std::size_t kChunk = 16;    // slots
constexpr std::size_t kMostDims = 512;  // of a head

class PagedKV {
  public:
    using Value = Bf16;
    static constexpr bool kHasScales = false;

    PagedKV(std::size_t num_slots, std::size_t num_heads, std::size_t head_dim)
        : num_heads_(num_heads),
          head_dim_(head_dim),
          keys_(num_slots * num_heads * head_dim),
          values_(num_slots * num_heads * head_dim) {}

    const std::uint32_t* keys(std::size_t chunk, std::size_t head) const {
        return reinterpret_cast<const std::uint32_t*>(keys_.data() + at(chunk, head));
    }
    const Bf16* values(std::size_t chunk, std::size_t head) const {
        return values_.data() + at(chunk, head);
    }

    // key, value: [head_dim]
    void write(std::size_t slot, std::size_t head, const Bf16* key, const Bf16* value) {
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
        Bf16* keys = keys_.data() + base + 2 * lane;
        for (std::size_t d = 0; d < head_dim_; d += 2) {
            std::memcpy(keys + d * kChunk, key + d, 2 * sizeof(Bf16));
        }
        std::memcpy(values_.data() + base + lane * head_dim_, value, head_dim_ * sizeof(Bf16));
    }

    // What is stored of a token, to be stored elsewhere: two rows of a head's numbers.
    std::size_t saved_size() const { return 2 * head_dim_ * sizeof(Bf16); }
    void save(std::size_t slot, std::size_t head, char* to) const {
        const std::size_t base = at(slot / kChunk, head), lane = slot % kChunk;
        const Bf16* keys = keys_.data() + base + 2 * lane;
        Bf16* key = reinterpret_cast<Bf16*>(to);
        for (std::size_t d = 0; d < head_dim_; d += 2) {
            std::memcpy(key + d, keys + d * kChunk, 2 * sizeof(Bf16));
        }
        std::memcpy(key + head_dim_, values_.data() + base + lane * head_dim_, head_dim_ * sizeof(Bf16));
    }
    void restore(std::size_t slot, std::size_t head, const char* from) {
        const Bf16* key = reinterpret_cast<const Bf16*>(from);
        write(slot, head, key, key + head_dim_);
    }

    QM_AVX512_INLINE static __m512 value16(const Value* from) { return widen16(from); }
    float value_scale(std::size_t, std::size_t, std::size_t) const { return 1.0f; }

  private:
    std::size_t at(std::size_t chunk, std::size_t head) const {
        return (chunk * num_heads_ + head) * kChunk * head_dim_;
    }

    std::size_t num_heads_, head_dim_;
    Memory<Bf16> keys_, values_;
};

}  // namespace quickmatch::decoder
#endif
