// simd.hpp's numbers in two registers of AVX2 each.
#pragma once

#include "simd.hpp"

namespace quickmatch::QM_ISA {

struct F16 {
    __m256 low, high;
};
struct I16 {
    __m256i low, high;
};

QM_INLINE F16 none_f() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
QM_INLINE I16 none_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
QM_INLINE F16 all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
QM_INLINE I16 all_i32(std::int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
QM_INLINE I16 all_i8(std::int8_t value) { return {_mm256_set1_epi8(value), _mm256_set1_epi8(value)}; }
QM_INLINE I16 counting() {
    return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
// The same sixteen bytes in every quarter.
QM_INLINE I16 repeat16(const void* from) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
    return {both, both};
}

// All ones in the lanes of a mask's low eight bits.
QM_INLINE __m256i lanes_of(unsigned mask) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(mask)), bits), bits);
}

QM_INLINE F16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
QM_INLINE void store(float* to, F16 a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}
QM_INLINE F16 choose(Mask16 mask, F16 off, F16 on) {
    return {_mm256_blendv_ps(off.low, on.low, _mm256_castsi256_ps(lanes_of(mask))),
            _mm256_blendv_ps(off.high, on.high, _mm256_castsi256_ps(lanes_of(mask >> 8)))};
}
QM_INLINE I16 choose(Mask16 mask, I16 off, I16 on) {
    return {_mm256_blendv_epi8(off.low, on.low, lanes_of(mask)),
            _mm256_blendv_epi8(off.high, on.high, lanes_of(mask >> 8))};
}
QM_INLINE F16 load_some(Mask16 mask, const float* from, F16 others) {
    const F16 some{_mm256_maskload_ps(from, lanes_of(mask)), _mm256_maskload_ps(from + 8, lanes_of(mask >> 8))};
    return choose(mask, others, some);
}
QM_INLINE void store_some(float* to, Mask16 mask, F16 a) {
    _mm256_maskstore_ps(to, lanes_of(mask), a.low);
    _mm256_maskstore_ps(to + 8, lanes_of(mask >> 8), a.high);
}
QM_INLINE I16 load_i(const void* from) {
    const auto* at = static_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
QM_INLINE void store_i(void* to, I16 a) {
    auto* at = static_cast<__m256i*>(to);
    _mm256_storeu_si256(at, a.low);
    _mm256_storeu_si256(at + 1, a.high);
}
// Masks of words are the same for every dword: both, or one of the two.
QM_INLINE I16 words_of(Mask32 mask) {
    return all_i32(std::int32_t((mask & 1 ? 0x0000FFFFu : 0) | (mask & 2 ? 0xFFFF0000u : 0)));
}
QM_INLINE I16 load_words(Mask32 mask, const void* from) {
    const I16 a = load_i(from), kept = words_of(mask);
    return {_mm256_and_si256(a.low, kept.low), _mm256_and_si256(a.high, kept.high)};
}
QM_INLINE void store_words(void* to, Mask32 mask, I16 a) {
    const I16 old = load_i(to), put = words_of(mask);
    store_i(to, {_mm256_blendv_epi8(old.low, a.low, put.low), _mm256_blendv_epi8(old.high, a.high, put.high)});
}
// Dwords at byte offsets; 0 where the mask is off.
QM_INLINE I16 gather(Mask16 mask, I16 offsets, const void* from) {
    const __m256i none = _mm256_setzero_si256();
    const auto* base = static_cast<const int*>(from);
    return {_mm256_mask_i32gather_epi32(none, base, offsets.low, lanes_of(mask), 1),
            _mm256_mask_i32gather_epi32(none, base, offsets.high, lanes_of(mask >> 8), 1)};
}
QM_INLINE I16 widen_u16(const void* from) {
    const auto* at = static_cast<const __m128i*>(from);
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))};
}
QM_INLINE I16 widen_u8(const void* from) {
    const __m128i a = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return {_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8))};
}
QM_INLINE I16 widen_i8(const void* from) {
    const __m128i a = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return {_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8))};
}
// The numbers fit.
QM_INLINE void narrow_i8(void* to, I16 a) {
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(a.low), _mm256_extracti128_si256(a.low, 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(a.high), _mm256_extracti128_si256(a.high, 1));
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm_packs_epi16(low, high));
}
// The numbers fit.
QM_INLINE void narrow_i16(void* to, I16 a) {
    const __m256i both = _mm256_packs_epi32(a.low, a.high);
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_permute4x64_epi64(both, 0xD8));
}
// Thirty-two signed bytes as words.
QM_INLINE I16 words_of_bytes(const void* from) {
    const auto* at = static_cast<const __m128i*>(from);
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1))};
}
QM_INLINE F16 load_half(const std::uint16_t* from) {
    const auto* at = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}

QM_INLINE F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
QM_INLINE F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
QM_INLINE F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
QM_INLINE F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
QM_INLINE F16 fma(F16 a, F16 b, F16 c) {  // a·b + c
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
QM_INLINE F16 fms(F16 a, F16 b, F16 c) {  // a·b - c
    return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
QM_INLINE F16 fnma(F16 a, F16 b, F16 c) {  // c - a·b
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
QM_INLINE F16 larger(F16 a, F16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
QM_INLINE F16 smaller(F16 a, F16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
QM_INLINE F16 magnitude(F16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
QM_INLINE F16 nearest(F16 a) {
    constexpr int kHow = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kHow), _mm256_round_ps(a.high, kHow)};
}

QM_INLINE I16 add(I16 a, I16 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
QM_INLINE I16 mul(I16 a, I16 b) { return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)}; }
QM_INLINE I16 bit_or(I16 a, I16 b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
QM_INLINE I16 bit_and(I16 a, I16 b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
template <int kBits>
QM_INLINE I16 left32(I16 a) { return {_mm256_slli_epi32(a.low, kBits), _mm256_slli_epi32(a.high, kBits)}; }
template <int kBits>
QM_INLINE I16 right32(I16 a) { return {_mm256_srli_epi32(a.low, kBits), _mm256_srli_epi32(a.high, kBits)}; }
template <int kBits>
QM_INLINE I16 left16(I16 a) { return {_mm256_slli_epi16(a.low, kBits), _mm256_slli_epi16(a.high, kBits)}; }
template <int kBits>
QM_INLINE I16 right16(I16 a) { return {_mm256_srli_epi16(a.low, kBits), _mm256_srli_epi16(a.high, kBits)}; }
QM_INLINE I16 look_up(I16 table, I16 codes) {
    return {_mm256_shuffle_epi8(table.low, codes.low), _mm256_shuffle_epi8(table.high, codes.high)};
}

QM_INLINE F16 to_float(I16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
QM_INLINE I16 to_int(F16 a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
QM_INLINE F16 as_float(I16 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }

QM_INLINE Mask16 is_larger_than(F16 a, F16 b) {
    return Mask16(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ)) |
                  _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ)) << 8);
}
QM_INLINE Mask16 is_equal_to(F16 a, F16 b) {
    return Mask16(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ)) |
                  _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)) << 8);
}

// a · 2^n for whole n from -126 to 127, 0 where the mask is off.
QM_INLINE F16 times_power(Mask16 mask, F16 a, F16 n) {
    const F16 power = as_float(left32<23>(add(to_int(n), all_i32(127))));
    return choose(mask, none_f(), mul(a, power));
}

QM_INLINE float sum_of(F16 a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
// Of each of four, or of rows of four.
template <int kRows>
QM_INLINE void put_sums_of(const F16 (&a)[kRows][4], float* to, std::size_t stride) {
    for (int r = 0; r < kRows; ++r) {
        for (int n = 0; n < 4; ++n) to[r * stride + n] = sum_of(a[r][n]);
    }
}
QM_INLINE float largest_of(F16 a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
QM_INLINE std::int32_t sum_of(I16 a) {
    const __m256i eight = _mm256_add_epi32(a.low, a.high);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
QM_INLINE std::uint32_t smallest_of(Mask16 mask, I16 a) {
    std::uint32_t lanes[16], out = 0xFFFFFFFF;
    store_i(lanes, a);
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1 && lanes[i] < out) out = lanes[i];
    }
    return out;
}

// sum + the products of four unsigned bytes with four signed ones.
QM_INLINE __m256i dot_bytes(__m256i sum, __m256i a, __m256i b) {
#if QM_ISA_LEVEL == QM_LEVEL_AVX2_VNNI
    return _mm256_dpbusd_avx_epi32(sum, a, b);
#else  // as words, whose products of two fit a dword
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0x00FF)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#endif
}
QM_INLINE I16 dot_bytes(I16 sum, I16 a, I16 b) {
    return {dot_bytes(sum.low, a.low, b.low), dot_bytes(sum.high, a.high, b.high)};
}
// sum + the products of two signed words with two.
QM_INLINE I16 dot_words(I16 sum, I16 a, I16 b) {
    return add(sum, I16{_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)});
}

struct B32 {
    F16 first, second;
};
QM_INLINE B32 as_pairs(I16 a) {
    return {as_float(left32<16>(a)), as_float(bit_and(a, all_i32(std::int32_t(0xFFFF0000))))};
}
// sum + the products of two pairs.
QM_INLINE F16 dot(F16 sum, const B32& a, const B32& b) {
    return fma(a.second, b.second, fma(a.first, b.first, sum));
}

// To nearest, ties to even; of no number a quiet one. In the low halves of dwords.
QM_INLINE __m256i rounded(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i is_none = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_set1_epi32(0x7FC0), is_none);
}
QM_INLINE void narrow16(Bf16* to, F16 a) {
    const __m256i both = _mm256_packus_epi32(rounded(a.low), rounded(a.high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(both, 0xD8));
}
QM_INLINE void narrow32(Bf16* to, F16 low, F16 high) {
    narrow16(to, low);
    narrow16(to + 16, high);
}

}  // namespace quickmatch::QM_ISA
