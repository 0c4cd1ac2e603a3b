// A weight in any format, and its product with rows of bfloat16.
#pragma once

#include "isa.hpp"

#if QM_HAS_DECODER
#include <cstddef>
#include <variant>

#include "int_product.hpp"
#include "product.hpp"

namespace quickmatch::decoder {

using Matrix = std::variant<Weight, IntWeight>;

inline std::size_t num_bytes(const Matrix& matrix) {
    return std::visit([](const auto& one) { return one.num_bytes(); }, matrix);
}

// x: [num_rows, in]; to: [num_rows, out]. rows: memory for x in fewer bits, where the format asks.
inline void multiply(Team& team, const Matrix& matrix, const Bf16* x, std::size_t num_rows,
                     const Target& to, RoundedRows& rows) {
    if (const Weight* weight = std::get_if<Weight>(&matrix)) {
        multiply(team, *weight, x, num_rows, to);
    } else {
        multiply(team, std::get<IntWeight>(matrix), x, num_rows, to, rows);
    }
}

}  // namespace quickmatch::decoder
#endif
