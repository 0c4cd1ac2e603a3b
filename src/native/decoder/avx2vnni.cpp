// The decoder for processors with AVX2 and products of bytes (Intel Alder Lake and later, without AVX-512).
#if defined(__x86_64__) && defined(__GNUC__)
#define QM_ISA avx2vnni
#define QM_ISA_LEVEL 2
#include "bindings_of_isa.hpp"
#endif
