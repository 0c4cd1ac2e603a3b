// Numbers rounded to words: what an adapter that is held in bytes is multiplied with.
//
// Products of bytes and words are summed as integers, which is exact: the rounding alone, to a 32767th of a
// row's largest number, tells them from the products of the numbers as they were.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "rows.hpp"
#include "simd.hpp"

namespace quickmatch::QM_ISA {

// The largest word of which so many products with bytes fit in a dword.
inline float largest_word(std::size_t num_products) {
    return float(std::min<std::size_t>(32767, 0x7FFFFFFF / (128 * std::max<std::size_t>(num_products, 2))));
}

// Returns what the words are to be multiplied by. size is a multiple of 16; scales: null, or what the
// numbers are to be multiplied by first.
template <typename Number>
QM_KERNEL float round_to_words(const Number* from, const float* scales, std::size_t size, float limit,
                               std::int16_t* words) {
    const auto number = [&](std::size_t i) QM_KERNEL {
        const F16 some = take16(from + i);
        return scales == nullptr ? some : mul(some, load(scales + i));
    };
    F16 largest = none_f();
    for (std::size_t i = 0; i < size; i += 16) largest = larger(largest, magnitude(number(i)));
    const float most = largest_of(largest);
    const F16 inverse = all(most > 0.0f ? limit / most : 0.0f);
    for (std::size_t i = 0; i < size; i += 16) narrow_i16(words + i, to_int(mul(number(i), inverse)));
    return most / limit;
}

}  // namespace quickmatch::QM_ISA
