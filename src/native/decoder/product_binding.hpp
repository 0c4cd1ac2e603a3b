// Matrices as they cross Python's border, and the product by itself, which tests compare.

#pragma once

#include "../bindings.hpp"

#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "matrix.hpp"

namespace nb = nanobind;

namespace quickmatch::QM_ISA {
namespace {

using Address = std::uintptr_t;

template <typename Value>
const Value* at(Address address) {
    return reinterpret_cast<const Value*>(address);
}

// A matrix as it crosses the border: bits (16: bfloat16) and whether they are a floating-point number's;
// the addresses of its numbers or codes, of scales and of zeros (0: symmetric); how many groups of
// inputs have a scale.
using MatrixParts = std::tuple<int, bool, Address, Address, Address, std::size_t>;

Matrix make_matrix(Arena& arena, const MatrixParts& parts, Address bias, std::size_t out,
                   std::size_t in, Team& team) {
    team.set_active(true);
    const auto [bits, is_float, data, scales, zeros, num_groups] = parts;
    if (bits == 16) return Weight(arena, at<Bf16>(data), at<Bf16>(bias), out, in, &team);
    const CodeKind kind = bits == 8 ? CodeKind::int8 : is_float ? CodeKind::mxfp4 : CodeKind::int4;
    const Codes codes{at<std::uint8_t>(data), at<float>(scales), at<std::uint8_t>(zeros), num_groups, kind};
    return IntWeight(arena, codes, at<Bf16>(bias), out, in, &team);
}

// x: [num_rows, in] float32; y: [num_rows, out] float32, written.
void multiply_alone(const MatrixParts& parts, Address bias, std::size_t out, std::size_t in, Address x,
                    std::size_t num_rows, Address y) {
    Arena arena(false);
    Team team(1);
    RoundedRows rounded;
    const Matrix matrix = make_matrix(arena, parts, bias, out, in, team);
    const std::size_t row_size = in + in % 2, lanes = (row_size + kLanes - 1) / kLanes * kLanes;
    std::vector<Operand> rows(num_rows * row_size + kLanes), row(lanes);
    std::vector<float> wide(lanes);
    for (std::size_t r = 0; r < num_rows; ++r) {
        std::copy(at<float>(x) + r * in, at<float>(x) + (r + 1) * in, wide.begin());
        convert(wide.data(), lanes, row.data());
        std::copy(row.begin(), row.begin() + row_size, rows.begin() + r * row_size);
    }
    multiply(team, matrix, rows.data(), num_rows, Target{reinterpret_cast<float*>(y), out, false}, rounded);
}

void bind_product(nb::module_& m) {
    m.def("multiply", &multiply_alone, nb::arg("matrix"), nb::kw_only(), nb::arg("bias"), nb::arg("num_out"),
          nb::arg("num_in"), nb::arg("x"), nb::arg("num_rows"), nb::arg("y"));
}

}  // namespace
}  // namespace quickmatch::QM_ISA
