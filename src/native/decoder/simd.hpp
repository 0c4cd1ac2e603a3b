// Sixteen numbers at a time: what the kernels are written with.
//
// F16 is sixteen float32, I16 sixteen dwords, B32 thirty-two bfloat16 (a pair in each dword: the
// earlier one in its low half). A bit of a Mask16 is a lane, of a Mask32 a word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "isa.hpp"

namespace quickmatch::QM_ISA {

using Bf16 = std::uint16_t;
using Mask16 = std::uint16_t;
using Mask32 = std::uint32_t;

}  // namespace quickmatch::QM_ISA

#if QM_ISA_LEVEL >= QM_LEVEL_AVX512_VNNI
#include "simd_avx512.hpp"
#else
#include "simd_avx2.hpp"
#endif

namespace quickmatch::QM_ISA {

// What a product reads of its rows: bfloat16 where the processor multiplies pairs of it. Elsewhere
// float32: a pair would have to be taken apart again for every output.
#if QM_ISA_LEVEL >= QM_LEVEL_AVX512_BF16 || defined(QM_SOFTWARE_TILES)
#define QM_MULTIPLIES_PAIRS
using Operand = Bf16;
#else
using Operand = float;
#endif

// Two neighbours, in every lane.
QM_INLINE B32 pair_of(const Operand* two) {
#ifdef QM_MULTIPLIES_PAIRS
    std::int32_t pair;
    std::memcpy(&pair, two, sizeof pair);
    return as_pairs(all_i32(pair));
#else
    return {all(two[0]), all(two[1])};
#endif
}

QM_INLINE void put16(Bf16* to, F16 a) { narrow16(to, a); }
QM_INLINE void put16(float* to, F16 a) { store(to, a); }
QM_INLINE void put32(Bf16* to, F16 low, F16 high) { narrow32(to, low, high); }
QM_INLINE void put32(float* to, F16 low, F16 high) {
    store(to, low);
    store(to + 16, high);
}
QM_INLINE F16 take16(const Bf16* from) { return as_float(left32<16>(widen_u16(from))); }
QM_INLINE F16 take16(const float* from) { return load(from); }

}  // namespace quickmatch::QM_ISA
