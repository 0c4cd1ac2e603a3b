// The decoder for processors with AVX-512 and products of bfloat16 (AMD Zen 4, Intel Cooper Lake and later).
#if defined(__x86_64__) && defined(__GNUC__)
#define QM_ISA avx512bf16
#define QM_ISA_LEVEL 4
#include "bindings_of_isa.hpp"
#endif
