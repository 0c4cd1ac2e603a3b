// Which processors the native decoder runs on, and how its functions are compiled for them.
//
// Every function that uses these instructions carries QM_AVX512, instead of the whole file being
// compiled for them: the linker may keep any file's copy of a shared inline function, and a
// processor without AVX-512 must never meet one that uses it.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define QM_HAS_DECODER 1
#include <immintrin.h>
#define QM_AVX512 \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")))
#define QM_AVX512_INLINE QM_AVX512 __attribute__((always_inline)) inline
#define QM_UNROLL _Pragma("GCC unroll 8")
#else
#define QM_HAS_DECODER 0
#endif

namespace quickmatch::decoder {

inline bool is_supported() {
#if QM_HAS_DECODER
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

}  // namespace quickmatch::decoder
