// Arithmetic on rows of numbers: conversions, norms, activations, rotations.
//
// Numbers between the operations of a step are float32; what a product reads is bfloat16, rounded to
// nearest. Every function gives a row the same bits whatever other rows stand beside it.
#pragma once

#include "isa.hpp"

#if QM_HAS_DECODER
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace quickmatch::decoder {

using Bf16 = std::uint16_t;

inline float widen(Bf16 value) {
    const std::uint32_t bits = std::uint32_t{value} << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

QM_AVX512_INLINE __m512 widen16(const Bf16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

QM_AVX512_INLINE void narrow16(Bf16* to, __m512 values) {
    const __m256bh rounded = _mm512_cvtneps_pbh(values);
    std::memcpy(to, &rounded, sizeof rounded);
}

// e^x to about one unit in the last place of bfloat16's eight and then some; 0 below -87.
// Cody-Waite reduction and a polynomial of degree 6 (Taylor's, on [-ln2/2, ln2/2]).
QM_AVX512_INLINE __m512 exp16(__m512 x) {
    const __mmask16 is_normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GT_OQ);
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(88.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(is_normal, p, n);
}

// 2^x to some 2e-6, relative; 0 below -126. Taylor's polynomial of degree 5 on [-1/2, 1/2].
QM_AVX512_INLINE __m512 exp2_16(__m512 x) {
    const __mmask16 is_normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_GT_OQ);
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.33335581e-3f);  // ln(2)^k / k!, k from 5 down
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61812911e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(is_normal, p, n);
}

// 1 / sqrt(mean(x²) + eps); size is a multiple of 16.
QM_AVX512_INLINE __m512 inverse_rms(const float* x, float eps, std::size_t size) {
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t i = 0; i < size; i += 16) {
        const __m512 v = _mm512_loadu_ps(x + i);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    const float mean = _mm512_reduce_add_ps(sum) / static_cast<float>(size);
    return _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
}

// x · inverse_rms(x) · weight.
QM_AVX512 inline void rms_norm(const float* x, const float* weight, float eps, std::size_t size,
                               Bf16* out) {
    const __m512 scale = inverse_rms(x, eps, size);
    for (std::size_t i = 0; i < size; i += 16) {
        const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale);
        narrow16(out + i, _mm512_mul_ps(v, _mm512_loadu_ps(weight + i)));
    }
}

// The same in place, float32 throughout: the norm of a single head.
QM_AVX512 inline void rms_norm_(float* x, const float* weight, float eps, std::size_t size) {
    const __m512 scale = inverse_rms(x, eps, size);
    for (std::size_t i = 0; i < size; i += 16) {
        const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale);
        _mm512_storeu_ps(x + i, _mm512_mul_ps(v, _mm512_loadu_ps(weight + i)));
    }
}

// Numbers rounded to 8 bits: number ≈ code · most / 127.
struct Rounded {
    float most;         // the largest number, without its sign
    std::int32_t sum;  // of the codes
};

// size is a multiple of 16.
QM_AVX512 inline Rounded round_to_int8(const Bf16* from, std::size_t size, std::int8_t* codes) {
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
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(rounded));
    }
    return {most, _mm512_reduce_add_epi32(sum)};
}

// silu(gate) · up; size is a multiple of 16.
QM_AVX512 inline void silu_times(const float* gates, const float* ups, std::size_t size, Bf16* out) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (std::size_t i = 0; i < size; i += 16) {
        const __m512 gate = _mm512_loadu_ps(gates + i);
        const __m512 bottom = _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
        const __m512 activated = _mm512_div_ps(gate, bottom);
        narrow16(out + i, _mm512_mul_ps(activated, _mm512_loadu_ps(ups + i)));
    }
}

// Rotate one head in place: its halves (a, b) become (a·cos - b·sin, b·cos + a·sin).
// cos, sin: [half]; half is a multiple of 16.
QM_AVX512 inline void rotate_(float* head, const float* cos, const float* sin, std::size_t half) {
    for (std::size_t i = 0; i < half; i += 16) {
        const __m512 a = _mm512_loadu_ps(head + i), b = _mm512_loadu_ps(head + half + i);
        const __m512 c = _mm512_loadu_ps(cos + i), s = _mm512_loadu_ps(sin + i);
        _mm512_storeu_ps(head + i, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
        _mm512_storeu_ps(head + half + i, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}

// The first of the largest of so many numbers; NaN counts as the smallest.
QM_AVX512 inline std::size_t argmax(const float* from, std::size_t size) {
    __m512 best = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512i best_at = _mm512_setzero_si512(), at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                                     10, 11, 12, 13, 14, 15);
    const __m512i step = _mm512_set1_epi32(16);
    for (std::size_t i = 0; i < size; i += 16) {
        const std::size_t left = size - i;
        const __mmask16 mask = left >= 16 ? 0xFFFF : (1u << left) - 1;
        const __m512 some = _mm512_mask_loadu_ps(best, mask, from + i);
        const __mmask16 is_larger = _mm512_cmp_ps_mask(some, best, _CMP_GT_OQ);
        best = _mm512_mask_blend_ps(is_larger, best, some);
        best_at = _mm512_mask_blend_epi32(is_larger, best_at, at);
        at = _mm512_add_epi32(at, step);
    }
    const __mmask16 is_top =
        _mm512_cmp_ps_mask(best, _mm512_set1_ps(_mm512_reduce_max_ps(best)), _CMP_EQ_OQ);
    return std::size_t(_mm512_mask_reduce_min_epu32(is_top, best_at));
}

QM_AVX512 inline void narrow(const float* from, std::size_t size, Bf16* to) {
    for (std::size_t i = 0; i < size; i += 16) narrow16(to + i, _mm512_loadu_ps(from + i));
}

QM_AVX512 inline void widen(const Bf16* from, std::size_t size, float* to) {
    for (std::size_t i = 0; i < size; i += 16) _mm512_storeu_ps(to + i, widen16(from + i));
}

}  // namespace quickmatch::decoder
#endif
