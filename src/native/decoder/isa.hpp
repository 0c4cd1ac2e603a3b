// One of the instruction sets that the kernels are compiled for, each in a namespace of its own.
//
// amx.cpp, avx512bf16.cpp, avx512vnni.cpp, avx2vnni.cpp and avx2.cpp define QM_ISA, the namespace, and
// QM_ISA_LEVEL, and include everything else; module.cpp says which the processor can run. software_tiles.cpp
// has the products of AMX with tiles that any of these can run (QM_SOFTWARE_TILES), for tests. Kernels are written
// with simd.hpp's sixteen lanes and carry QM_KERNEL, instead of whole files being compiled for them:
// the linker may keep any file's copy of a function of the standard library, and a processor must
// never meet one that uses what it does not have.
#pragma once

#if !defined(QM_ISA) || !defined(QM_ISA_LEVEL)
#error "only avx512bf16.cpp and those beside it may include this"
#endif

#define QM_LEVEL_AVX2 1
#define QM_LEVEL_AVX2_VNNI 2
#define QM_LEVEL_AVX512_VNNI 3
#define QM_LEVEL_AVX512_BF16 4
#define QM_LEVEL_AMX 5

#include <immintrin.h>

#if QM_ISA_LEVEL >= QM_LEVEL_AVX512_BF16
#define QM_KERNEL \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")))
#elif QM_ISA_LEVEL == QM_LEVEL_AVX512_VNNI
#define QM_KERNEL \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#elif QM_ISA_LEVEL == QM_LEVEL_AVX2_VNNI
#define QM_KERNEL __attribute__((target("avx2,fma,f16c,avxvnni")))
#else
#define QM_KERNEL __attribute__((target("avx2,fma,f16c")))
#endif
#define QM_INLINE QM_KERNEL __attribute__((always_inline)) inline
#define QM_UNROLL _Pragma("GCC unroll 8")

namespace quickmatch::QM_ISA {

constexpr bool kHas32Registers = QM_ISA_LEVEL >= QM_LEVEL_AVX512_VNNI;  // else 16, of half the width
#ifdef QM_SOFTWARE_TILES
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = QM_ISA_LEVEL >= QM_LEVEL_AMX;
#endif

}  // namespace quickmatch::QM_ISA
