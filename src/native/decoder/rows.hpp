// Arithmetic on rows of numbers: conversions, norms, activations, rotations.
//
// Numbers between the operations of a step are float32; what a product reads is an Operand, where
// that is bfloat16 rounded to nearest. Every function gives a row the same bits whatever other rows stand beside it.
#pragma once

#include "simd.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace quickmatch::QM_ISA {

inline float widen(Bf16 value) {
    const std::uint32_t bits = std::uint32_t{value} << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline float widen(float value) { return value; }

// e^x to about one unit in the last place of bfloat16's eight and then some; 0 below -87.
// Cody-Waite reduction and a polynomial of degree 6 (Taylor's, on [-ln2/2, ln2/2]).
QM_INLINE F16 exp16(F16 x) {
    const Mask16 is_normal = is_larger_than(x, all(-87.0f));
    x = smaller(larger(x, all(-87.0f)), all(88.0f));
    const F16 n = nearest(mul(x, all(1.44269504f)));
    F16 r = fnma(n, all(0.693359375f), x);
    r = fnma(n, all(-2.12194440e-4f), r);
    F16 p = all(1.0f / 720);
    p = fma(p, r, all(1.0f / 120));
    p = fma(p, r, all(1.0f / 24));
    p = fma(p, r, all(1.0f / 6));
    p = fma(p, r, all(0.5f));
    p = fma(p, r, all(1.0f));
    p = fma(p, r, all(1.0f));
    return times_power(is_normal, p, n);
}

// 2^x to some 2e-6, relative; 0 below -126. Taylor's polynomial of degree 5 on [-1/2, 1/2].
QM_INLINE F16 exp2_16(F16 x) {
    const Mask16 is_normal = is_larger_than(x, all(-126.0f));
    const F16 n = nearest(x);
    const F16 r = sub(x, n);
    F16 p = all(1.33335581e-3f);  // ln(2)^k / k!, k from 5 down
    p = fma(p, r, all(9.61812911e-3f));
    p = fma(p, r, all(5.55041087e-2f));
    p = fma(p, r, all(2.40226507e-1f));
    p = fma(p, r, all(6.93147181e-1f));
    p = fma(p, r, all(1.0f));
    return times_power(is_normal, p, n);
}

// 1 / sqrt(mean(x²) + eps); size is a multiple of 16.
QM_INLINE F16 inverse_rms(const float* x, float eps, std::size_t size) {
    F16 sum = none_f();
    for (std::size_t i = 0; i < size; i += 16) {
        const F16 v = load(x + i);
        sum = fma(v, v, sum);
    }
    const float mean = sum_of(sum) / static_cast<float>(size);
    return all(1.0f / std::sqrt(mean + eps));
}

// x · inverse_rms(x) · weight.
QM_KERNEL inline void rms_norm(const float* x, const float* weight, float eps, std::size_t size,
                               Operand* out) {
    const F16 scale = inverse_rms(x, eps, size);
    for (std::size_t i = 0; i < size; i += 16) {
        const F16 v = mul(load(x + i), scale);
        put16(out + i, mul(v, load(weight + i)));
    }
}

// The same in place, float32 throughout: the norm of a single head.
QM_KERNEL inline void rms_norm_(float* x, const float* weight, float eps, std::size_t size) {
    const F16 scale = inverse_rms(x, eps, size);
    for (std::size_t i = 0; i < size; i += 16) {
        const F16 v = mul(load(x + i), scale);
        store(x + i, mul(v, load(weight + i)));
    }
}

// Numbers rounded to 8 bits: number ≈ code · most / 127.
struct Rounded {
    float most;         // the largest number, without its sign
    std::int32_t sum;  // of the codes
};

// size is a multiple of 16.
template <typename Number>
QM_KERNEL inline Rounded round_to_int8(const Number* from, std::size_t size, std::int8_t* codes) {
    F16 largest = none_f();
    for (std::size_t i = 0; i < size; i += 16) {
        largest = larger(largest, magnitude(take16(from + i)));
    }
    const float most = largest_of(largest);
    const F16 inverse = all(most > 0.0f ? 127.0f / most : 0.0f);
    I16 sum = none_i();
    for (std::size_t i = 0; i < size; i += 16) {
        const I16 rounded = to_int(mul(take16(from + i), inverse));
        sum = add(sum, rounded);
        narrow_i8(codes + i, rounded);
    }
    return {most, sum_of(sum)};
}

// silu(gate) · up; size is a multiple of 16.
QM_KERNEL inline void silu_times(const float* gates, const float* ups, std::size_t size, Operand* out) {
    const F16 one = all(1.0f);
    for (std::size_t i = 0; i < size; i += 16) {
        const F16 gate = load(gates + i);
        const F16 bottom = add(one, exp16(sub(none_f(), gate)));
        const F16 activated = div(gate, bottom);
        put16(out + i, mul(activated, load(ups + i)));
    }
}

// Rotate one head in place: its halves (a, b) become (a·cos - b·sin, b·cos + a·sin).
// cos, sin: [half]; half is a multiple of 16.
QM_KERNEL inline void rotate_(float* head, const float* cos, const float* sin, std::size_t half) {
    for (std::size_t i = 0; i < half; i += 16) {
        const F16 a = load(head + i), b = load(head + half + i);
        const F16 c = load(cos + i), s = load(sin + i);
        store(head + i, fnma(b, s, mul(a, c)));
        store(head + half + i, fma(a, s, mul(b, c)));
    }
}

// The first of the largest of so many numbers; NaN counts as the smallest.
QM_KERNEL inline std::size_t argmax(const float* from, std::size_t size) {
    F16 best = all(-std::numeric_limits<float>::infinity());
    I16 best_at = none_i(), at = counting();
    const I16 step = all_i32(16);
    for (std::size_t i = 0; i < size; i += 16) {
        const std::size_t left = size - i;
        const Mask16 mask = left >= 16 ? 0xFFFF : (1u << left) - 1;
        const F16 some = load_some(mask, from + i, best);
        const Mask16 is_larger = is_larger_than(some, best);
        best = choose(is_larger, best, some);
        best_at = choose(is_larger, best_at, at);
        at = add(at, step);
    }
    const Mask16 is_top =
        is_equal_to(best, all(largest_of(best)));
    return std::size_t(smallest_of(is_top, best_at));
}

// From one format to the other, or the same.
template <typename From, typename To>
QM_KERNEL inline void convert(const From* from, std::size_t size, To* to) {
    for (std::size_t i = 0; i < size; i += 16) put16(to + i, take16(from + i));
}

}  // namespace quickmatch::QM_ISA
