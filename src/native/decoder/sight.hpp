// What the rows of a step see: which tokens of which sequence, and of a draft's tree which nodes.
#pragma once

#include "isa.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "paged_kv.hpp"
#include "simd.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kNoTree = static_cast<std::size_t>(-1);

// The new tokens of one sequence.
struct Span {
    std::size_t start;       // row of its first token
    std::size_t num_rows;
    std::size_t context;     // tokens stored before it
    std::size_t tree_start;  // first of its rows' parents; kNoTree: a plain span
    std::vector<std::uint32_t> chunks;  // where its tokens lie, sixteen each
};

// What one row sees: tokens [low, high), and of those behind `context` only the marked.
struct View {
    std::size_t low, high;
    std::size_t context;          // all tokens before this are seen
    std::size_t marks = kNoTree;  // into the marks of the sight; kNoTree: all before high are seen
};

// The views of all rows.
struct Sight {
    std::vector<View> views;
    std::vector<std::uint16_t> marks;  // a bit for each token of a chunk

    void clear() {
        views.clear();
        marks.clear();
    }

    // From here on the view, of tokens before `end`, sees behind its context only those tokens that
    // `each` calls its argument with.
    template <typename Each>
    void mark(View& view, std::size_t end, const Each& each) {
        const std::size_t base = view.context / kChunk * kChunk;
        view.marks = marks.size();
        marks.resize(marks.size() + (end - base + kChunk - 1) / kChunk, 0);
        std::uint16_t* words = marks.data() + view.marks;
        const auto see = [&](std::size_t token) {
            const std::size_t bit = token - base;
            words[bit / kChunk] = std::uint16_t(words[bit / kChunk] | 1u << bit % kChunk);
        };
        for (std::size_t token = base; token < view.context; ++token) see(token);
        each(see);
    }

    // Which of a chunk's tokens the view sees.
    Mask16 seen(const View& view, std::size_t chunk) const {
        const std::size_t start = chunk * kChunk;
        unsigned mask = 0xFFFF;
        if (view.marks != kNoTree && start + kChunk > view.context) {
            mask = marks[view.marks + chunk - view.context / kChunk];
        }
        if (start + kChunk > view.high) {
            mask &= view.high <= start ? 0u : (1u << (view.high - start)) - 1;
        }
        if (start < view.low) mask &= ~((1u << std::min(view.low - start, kChunk)) - 1);
        return static_cast<Mask16>(mask);
    }
};

}  // namespace quickmatch::QM_ISA
