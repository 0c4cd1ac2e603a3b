// The decoder for processors with AVX-512 and products of bytes (Intel Cascade Lake, Ice Lake, Tiger Lake).
#if defined(__x86_64__) && defined(__GNUC__)
#define QM_ISA avx512vnni
#define QM_ISA_LEVEL 3
#include "bindings_of_isa.hpp"
#endif
