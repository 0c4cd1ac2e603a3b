// A sequence's drafts as the assessor holds them: nodes, and what is believed of each.
//
// Mirrors tree.py and the records of merging.py. It knows no Python; module.cpp converts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quickmatch::speculation {

using Token = std::int64_t;
using Source = std::uint8_t;  // the values of tree.py's Source

constexpr std::size_t kNumSources = 6;
constexpr Source kFirstModelSource = 4;  // this one and those behind it run a model

inline bool is_model(Source source) { return source >= kFirstModelSource; }

struct Node {
    Token token_id;
    double confidence;
    std::int32_t parent;  // below its own place; -1: a child of the sequence's last token
    std::int32_t depth;   // from 1
    Source source;
    std::uint8_t feature;
};

using Tree = std::vector<Node>;

// A drafter's tree and each node's path probability.
struct Draft {
    Tree tree;
    std::vector<double> paths;
};

inline bool is_chain(const Tree& tree) {
    for (std::size_t i = 0; i < tree.size(); ++i) {
        if (tree[i].parent != static_cast<std::int32_t>(i) - 1) return false;
    }
    return true;
}

// A second source's record of a node.
struct Twin {
    std::int32_t node;
    Source source;
    std::uint8_t feature;
    double confidence;
    double together;  // P(right) if the two guesses were independent
};

// A tree, each node's path probability, and the records that lost their place to others'.
struct Merged {
    Tree tree;
    std::vector<double> probabilities;  // of a chain only the first, where the rest is too unlikely
    std::vector<Twin> twins;
    bool is_chain = false;  // and of one source; may be false of such a one too

    void clear() {
        tree.clear();
        probabilities.clear();
        twins.clear();
        is_chain = false;
    }

    // The first node that holds this token, -1 if none does.
    std::int32_t first_with(Token token_id) const {
        for (std::size_t i = 0; i < tree.size(); ++i) {
            if (tree[i].parent < 0 && tree[i].token_id == token_id) {
                return static_cast<std::int32_t>(i);
            }
        }
        return -1;
    }

    bool is_of_model(std::int32_t node) const {
        if (is_model(tree[static_cast<std::size_t>(node)].source)) return true;
        for (const Twin& twin : twins) {
            if (twin.node == node && is_model(twin.source)) return true;
        }
        return false;
    }
};

}  // namespace quickmatch::speculation
