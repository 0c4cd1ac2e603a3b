// The decoder for processors with AVX2, FMA and F16C: nearly all others since 2013.
#if defined(__x86_64__) && defined(__GNUC__)
#define QM_ISA avx2
#define QM_ISA_LEVEL 1
#include "bindings_of_isa.hpp"
#endif
