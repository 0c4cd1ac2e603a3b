// The products of AMX with tiles in software, on any processor with AVX2: for tests.
#if defined(__x86_64__) && defined(__GNUC__)
#define QM_ISA software_tiles
#define QM_ISA_LEVEL 1
#define QM_SOFTWARE_TILES
#include "product_binding.hpp"
#include "tile_check.hpp"

namespace quickmatch::software_tiles {

void bind(nb::module_& m) {
    bind_product(m);
    m.def("tiles_are_right", &tiles_are_right);
}

}  // namespace quickmatch::software_tiles
#endif
