// A weight in any format, and its product with rows of numbers.
#pragma once

#include "isa.hpp"

#include <cstddef>
#include <variant>

#include "int_product.hpp"
#include "product.hpp"

namespace quickmatch::QM_ISA {

using Matrix = std::variant<Weight, IntWeight>;

inline std::size_t num_bytes(const Matrix& matrix) {
    return std::visit([](const auto& one) { return one.num_bytes(); }, matrix);
}

// A product whose parts are asked for one by one. x: [num_rows, in]; to: [num_rows, out].
class Product {
  public:
    // rows: memory for x in fewer bits, where the format asks; one product's at a time.
    Product(Team& team, const Matrix& matrix, const Operand* x, std::size_t num_rows, const Target& to,
            RoundedRows& rows)
        : matrix_(matrix), x_(x), num_rows_(num_rows), to_(to), rows_(rows) {
        if (const IntWeight* weight = std::get_if<IntWeight>(&matrix)) {
            rows.round(team, x, num_rows, weight->in(), weight->group());
        }
    }

    std::size_t num_groups() const {
        return std::visit([](const auto& one) { return one.num_groups(); }, matrix_);
    }

    // Compute groups [first, last) of kGroupOutputs outputs; any thread may.
    void run(std::size_t first, std::size_t last) const {
        if (const Weight* weight = std::get_if<Weight>(&matrix_)) {
            multiply_groups(*weight, first, last, x_, weight->row_size(), num_rows_, to_);
        } else {
            multiply_groups(std::get<IntWeight>(matrix_), first, last, rows_, num_rows_, to_);
        }
    }

  private:
    const Matrix& matrix_;
    const Operand* x_;
    std::size_t num_rows_;
    Target to_;
    const RoundedRows& rows_;
};

// The whole product, by the team.
inline void multiply(Team& team, const Matrix& matrix, const Operand* x, std::size_t num_rows,
                     const Target& to, RoundedRows& rows) {
    if (num_rows == 0) return;
    const Product product(team, matrix, x, num_rows, to, rows);
    team.share(product.num_groups(),
               [&](std::size_t first, std::size_t last) { product.run(first, last); });
}

}  // namespace quickmatch::QM_ISA
