// Which instruction sets the decoder was compiled for, and which of them this processor has.

#include "../bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

namespace nb = nanobind;

namespace quickmatch {

#if defined(__x86_64__) && defined(__GNUC__)

namespace avx512bf16 {
void bind(nb::module_& m);
}
namespace avx512vnni {
void bind(nb::module_& m);
}
namespace avx2vnni {
void bind(nb::module_& m);
}
namespace avx2 {
void bind(nb::module_& m);
}

namespace {

// Those that run here, the quickest first. Each has a submodule of its name, with Decoder and Head.
std::vector<std::string> decoder_isas() {
    std::vector<std::string> found;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
        return found;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        if (__builtin_cpu_supports("avx512bf16")) found.push_back("avx512bf16");
        found.push_back("avx512vnni");
    }
    if (__builtin_cpu_supports("avxvnni")) found.push_back("avx2vnni");
    found.push_back("avx2");
    return found;
}

}  // namespace

void bind_decoder(nb::module_& m) {
    m.def("decoder_isas", &decoder_isas);
    nb::module_ bf16 = m.def_submodule("avx512bf16"), vnni = m.def_submodule("avx512vnni");
    nb::module_ half = m.def_submodule("avx2vnni"), least = m.def_submodule("avx2");
    avx512bf16::bind(bf16);
    avx512vnni::bind(vnni);
    avx2vnni::bind(half);
    avx2::bind(least);
}

#else

void bind_decoder(nb::module_& m) {
    m.def("decoder_isas", [] { return std::vector<std::string>(); });
}

#endif

}  // namespace quickmatch
