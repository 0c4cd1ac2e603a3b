// The decoder for processors with AMX's tiles beside AVX-512 (Intel Sapphire Rapids and later).
#if defined(__x86_64__) && defined(__GNUC__)
#define QM_ISA amx
#define QM_ISA_LEVEL 5
#include <sys/syscall.h>
#include <unistd.h>

#include "bindings_of_isa.hpp"
#include "tile_check.hpp"

namespace quickmatch::amx {

// Linux gives the tiles' state to processes that ask for it.
bool may_use_tiles() {
    constexpr long kAskForState = 0x1023, kTileData = 18;  // arch_prctl's ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0 && tiles_are_right();
}

}  // namespace quickmatch::amx
#endif
