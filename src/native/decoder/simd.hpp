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
