// Which instruction sets the decoder was compiled for, and which of them this processor has.

#include "../bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

#include <string>
#include <vector>

namespace nb = nanobind;

namespace quickmatch {

#if defined(__x86_64__) && defined(__GNUC__)

namespace amx {
bool may_use_tiles();
void bind(nb::module_& m);
}
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
namespace software_tiles {
void bind(nb::module_& m);
}

namespace {

// By cpuid itself: compilers of some years ago know no names for them.
bool has_tiles() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTile) && (d & kInt8);
}

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
        if (__builtin_cpu_supports("avx512bf16")) {
            if (has_tiles() && amx::may_use_tiles()) found.push_back("amx");
            found.push_back("avx512bf16");
        }
        found.push_back("avx512vnni");
    }
    if (__builtin_cpu_supports("avxvnni")) found.push_back("avx2vnni");
    found.push_back("avx2");
    return found;
}

}  // namespace

void bind_decoder(nb::module_& m) {
    m.def("decoder_isas", [] {
        static const std::vector<std::string> found = decoder_isas();
        return found;
    });
    nb::module_ tiles = m.def_submodule("amx"), model = m.def_submodule("software_tiles");
    nb::module_ bf16 = m.def_submodule("avx512bf16"), vnni = m.def_submodule("avx512vnni");
    nb::module_ half = m.def_submodule("avx2vnni"), least = m.def_submodule("avx2");
    amx::bind(tiles);
    software_tiles::bind(model);
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
