// simd.hpp's numbers in one register of AVX-512 each.
#pragma once

#include "simd.hpp"

namespace quickmatch::QM_ISA {

using F16 = __m512;
using I16 = __m512i;

QM_INLINE F16 none_f() { return _mm512_setzero_ps(); }
QM_INLINE I16 none_i() { return _mm512_setzero_si512(); }
QM_INLINE F16 all(float value) { return _mm512_set1_ps(value); }
QM_INLINE I16 all_i32(std::int32_t value) { return _mm512_set1_epi32(value); }
QM_INLINE I16 all_i8(std::int8_t value) { return _mm512_set1_epi8(value); }
QM_INLINE I16 counting() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
// The same sixteen bytes in every quarter.
QM_INLINE I16 repeat16(const void* from) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}

QM_INLINE F16 load(const float* from) { return _mm512_loadu_ps(from); }
QM_INLINE void store(float* to, F16 a) { _mm512_storeu_ps(to, a); }
QM_INLINE F16 load_some(Mask16 mask, const float* from, F16 others) {
    return _mm512_mask_loadu_ps(others, mask, from);
}
QM_INLINE void store_some(float* to, Mask16 mask, F16 a) { _mm512_mask_storeu_ps(to, mask, a); }
QM_INLINE I16 load_i(const void* from) { return _mm512_loadu_si512(from); }
QM_INLINE void store_i(void* to, I16 a) { _mm512_storeu_si512(to, a); }
QM_INLINE I16 load_words(Mask32 mask, const void* from) { return _mm512_maskz_loadu_epi16(mask, from); }
QM_INLINE void store_words(void* to, Mask32 mask, I16 a) { _mm512_mask_storeu_epi16(to, mask, a); }
// Dwords at byte offsets; 0 where the mask is off.
QM_INLINE I16 gather(Mask16 mask, I16 offsets, const void* from) {
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, offsets, from, 1);
}
QM_INLINE I16 widen_u16(const void* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
QM_INLINE I16 widen_u8(const void* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
QM_INLINE I16 widen_i8(const void* from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
QM_INLINE void narrow_i8(void* to, I16 a) {
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a));
}
QM_INLINE void narrow_i16(void* to, I16 a) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16(a));
}
// Thirty-two signed bytes as words.
QM_INLINE I16 words_of_bytes(const void* from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
QM_INLINE F16 load_half(const std::uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

QM_INLINE F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
QM_INLINE F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
QM_INLINE F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
QM_INLINE F16 div(F16 a, F16 b) { return _mm512_div_ps(a, b); }
QM_INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }    // a·b + c
QM_INLINE F16 fms(F16 a, F16 b, F16 c) { return _mm512_fmsub_ps(a, b, c); }    // a·b - c
QM_INLINE F16 fnma(F16 a, F16 b, F16 c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a·b
QM_INLINE F16 larger(F16 a, F16 b) { return _mm512_max_ps(a, b); }
QM_INLINE F16 smaller(F16 a, F16 b) { return _mm512_min_ps(a, b); }
QM_INLINE F16 magnitude(F16 a) { return _mm512_abs_ps(a); }
QM_INLINE F16 nearest(F16 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a · 2^n for whole n, 0 where the mask is off.
QM_INLINE F16 times_power(Mask16 mask, F16 a, F16 n) { return _mm512_maskz_scalef_ps(mask, a, n); }

QM_INLINE I16 add(I16 a, I16 b) { return _mm512_add_epi32(a, b); }
QM_INLINE I16 mul(I16 a, I16 b) { return _mm512_mullo_epi32(a, b); }
QM_INLINE I16 bit_or(I16 a, I16 b) { return _mm512_or_si512(a, b); }
QM_INLINE I16 bit_and(I16 a, I16 b) { return _mm512_and_si512(a, b); }
template <int kBits>
QM_INLINE I16 left32(I16 a) { return _mm512_slli_epi32(a, kBits); }
template <int kBits>
QM_INLINE I16 right32(I16 a) { return _mm512_srli_epi32(a, kBits); }
template <int kBits>
QM_INLINE I16 left16(I16 a) { return _mm512_slli_epi16(a, kBits); }
template <int kBits>
QM_INLINE I16 right16(I16 a) { return _mm512_srli_epi16(a, kBits); }
QM_INLINE I16 look_up(I16 table, I16 codes) { return _mm512_shuffle_epi8(table, codes); }

QM_INLINE F16 to_float(I16 a) { return _mm512_cvtepi32_ps(a); }
QM_INLINE I16 to_int(F16 a) { return _mm512_cvtps_epi32(a); }
QM_INLINE F16 as_float(I16 a) { return _mm512_castsi512_ps(a); }

QM_INLINE Mask16 is_larger_than(F16 a, F16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
QM_INLINE Mask16 is_equal_to(F16 a, F16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
QM_INLINE F16 choose(Mask16 mask, F16 off, F16 on) { return _mm512_mask_blend_ps(mask, off, on); }
QM_INLINE I16 choose(Mask16 mask, I16 off, I16 on) { return _mm512_mask_blend_epi32(mask, off, on); }

QM_INLINE float sum_of(F16 a) { return _mm512_reduce_add_ps(a); }
QM_INLINE float largest_of(F16 a) { return _mm512_reduce_max_ps(a); }
QM_INLINE std::int32_t sum_of(I16 a) { return _mm512_reduce_add_epi32(a); }
QM_INLINE std::uint32_t smallest_of(Mask16 mask, I16 a) { return _mm512_mask_reduce_min_epu32(mask, a); }

// What sum_of gives of each of four, or of four rows of four, and to the same bits.
QM_INLINE F16 add_quarters(F16 a, F16 b, F16 c, F16 d) {
    const F16 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    const F16 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
}
QM_INLINE void put_sums_of(const F16 (&a)[1][4], float* to, std::size_t) {
    const F16 fours = add_quarters(a[0][0], a[0][1], a[0][2], a[0][3]);
    const F16 twos = _mm512_add_ps(fours, _mm512_permute_ps(fours, 0x4E));
    const F16 sums = _mm512_add_ps(twos, _mm512_permute_ps(twos, 0xB1));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sums)));
}
QM_INLINE void put_sums_of(const F16 (&a)[4][4], float* to, std::size_t stride) {
    F16 fours[4];
    QM_UNROLL
    for (int n = 0; n < 4; ++n) fours[n] = add_quarters(a[0][n], a[1][n], a[2][n], a[3][n]);
    const F16 low = _mm512_add_ps(_mm512_shuffle_ps(fours[0], fours[1], 0x44), _mm512_shuffle_ps(fours[0], fours[1], 0xEE));
    const F16 high = _mm512_add_ps(_mm512_shuffle_ps(fours[2], fours[3], 0x44), _mm512_shuffle_ps(fours[2], fours[3], 0xEE));
    const F16 sums = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xDD));
    _mm_storeu_ps(to, _mm512_castps512_ps128(sums));
    _mm_storeu_ps(to + stride, _mm512_extractf32x4_ps(sums, 1));
    _mm_storeu_ps(to + 2 * stride, _mm512_extractf32x4_ps(sums, 2));
    _mm_storeu_ps(to + 3 * stride, _mm512_extractf32x4_ps(sums, 3));
}

// sum + the products of four unsigned bytes with four signed ones.
QM_INLINE I16 dot_bytes(I16 sum, I16 a, I16 b) { return _mm512_dpbusd_epi32(sum, a, b); }
// sum + the products of two signed words with two.
QM_INLINE I16 dot_words(I16 sum, I16 a, I16 b) { return _mm512_dpwssd_epi32(sum, a, b); }

#if QM_ISA_LEVEL >= QM_LEVEL_AVX512_BF16

using B32 = __m512bh;
QM_INLINE B32 as_pairs(I16 a) { return reinterpret_cast<B32>(a); }
// sum + the products of two pairs.
QM_INLINE F16 dot(F16 sum, B32 a, B32 b) { return _mm512_dpbf16_ps(sum, a, b); }

QM_INLINE void narrow16(Bf16* to, F16 a) {
    const __m256bh rounded = _mm512_cvtneps_pbh(a);
    std::memcpy(to, &rounded, sizeof rounded);
}
QM_INLINE void narrow32(Bf16* to, F16 low, F16 high) {
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(to, &both, sizeof both);
}

#else

struct B32 {
    F16 first, second;
};
QM_INLINE B32 as_pairs(I16 a) {
    return {as_float(left32<16>(a)), as_float(bit_and(a, all_i32(std::int32_t(0xFFFF0000))))};
}
QM_INLINE F16 dot(F16 sum, const B32& a, const B32& b) {
    return fma(a.second, b.second, fma(a.first, b.first, sum));
}

// To nearest, ties to even; of no number a quiet one.
QM_INLINE void narrow16(Bf16* to, F16 a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 is_none = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_blend_epi32(is_none, _mm512_srli_epi32(sum, 16), _mm512_set1_epi32(0x7FC0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(rounded));
}
QM_INLINE void narrow32(Bf16* to, F16 low, F16 high) {
    narrow16(to, low);
    narrow16(to + 16, high);
}

#endif

}  // namespace quickmatch::QM_ISA
