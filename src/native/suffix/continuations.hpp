// A tree of likely continuations, from the places where a context occurred before.
//
// Owns the estimate and the search. The chance of a token after a node is Witten-Bell's: the counts
// at each match length, longest first, blended by how often that length has been surprised. Only
// occurrences that agree with the path so far speak. Nodes come best first, by the chance of their
// path. It knows no index: an occurrence is a place to read on from.
//
// Source: Witten and Bell 1991, method C; the weight of a surprise falls with the match length.
// Mirrors continuations.py, operation for operation, so that the two agree to the last bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ngram_chains.hpp"

namespace quickmatch::suffix {

constexpr std::size_t kNumSources = 2;  // the sequence itself, past outputs
constexpr std::size_t kUsualNodes = 32;
constexpr std::uint8_t kSources[kNumSources] = {1, 2};  // as tree.py numbers them

struct Tree {
    std::vector<Token> token_ids;
    std::vector<std::int32_t> parents;
    std::vector<double> confidences;
    std::vector<std::uint8_t> sources;  // values of tree.py's Source
    std::vector<std::uint8_t> features;  // length of the longest match that speaks for the node

    void reserve(std::size_t size) {
        token_ids.reserve(size);
        parents.reserve(size);
        confidences.reserve(size);
        sources.reserve(size);
        features.reserve(size);
    }
};

// Occurrences in one text, longest match first.
struct Evidence {
    const Token* tokens;
    std::vector<Occurrence> occurrences;
};

class Continuations {
  public:
    // Begin a draft; then each source's occurrences are put in, and the tree is grown.
    void begin(const Token* own, const Token* past) {
        evidence_[0].tokens = own;
        evidence_[1].tokens = past;
        for (Evidence& one : evidence_) one.occurrences.clear();
        pool_.clear();
        candidates_.clear();
        heap_.clear();
    }

    std::vector<Occurrence>& occurrences(std::size_t source) { return evidence_[source].occurrences; }

    Tree grow(std::size_t max_nodes, std::uint32_t max_depth, double min_confidence) {
        min_confidence_ = min_confidence;
        Tree tree;
        tree.reserve(std::min(max_nodes, kUsualNodes));
        Span all[kNumSources];
        for (std::size_t s = 0; s < kNumSources; ++s) {
            all[s].begin = static_cast<std::uint32_t>(pool_.size());
            for (std::uint32_t i = 0; i < evidence_[s].occurrences.size(); ++i) pool_.push_back(i);
            all[s].end = static_cast<std::uint32_t>(pool_.size());
        }
        if (max_nodes > 0) expand(-1, 1.0, 0, all);
        while (!heap_.empty() && tree.token_ids.size() < max_nodes) {
            std::pop_heap(heap_.begin(), heap_.end());
            const Candidate best = candidates_[heap_.back().index];
            heap_.pop_back();
            const auto node = static_cast<std::int32_t>(tree.token_ids.size());
            tree.token_ids.push_back(best.token);
            tree.parents.push_back(best.parent);
            tree.confidences.push_back(best.confidence);
            tree.sources.push_back(kSources[best.source]);
            tree.features.push_back(best.feature);
            if (best.depth < max_depth && tree.token_ids.size() < max_nodes) {
                expand(node, best.path_chance, best.depth, best.spans);
            }
        }
        return tree;
    }

  private:
    struct Span {  // of pool_
        std::uint32_t begin = 0;
        std::uint32_t end = 0;
    };

    struct Candidate {
        Token token;
        std::int32_t parent;
        double confidence;
        double path_chance;
        std::uint8_t source;
        std::uint8_t feature;
        std::uint32_t depth;
        Span spans[kNumSources];
    };

    struct Ranked {
        double path_chance;
        std::uint32_t index;
        bool operator<(const Ranked& other) const {  // of equals the earlier comes first
            if (path_chance != other.path_chance) return path_chance < other.path_chance;
            return index > other.index;
        }
    };

    struct Group {  // occurrences that go on with the same token
        Token token;
        double chance;
        std::uint32_t longest;
        std::uint32_t size;
        Span span;
    };

    // Push the children of a node whose occurrences are `spans`.
    void expand(std::int32_t parent, double path_chance, std::uint32_t depth,
                const Span (&spans)[kNumSources]) {
        const std::size_t first = candidates_.size();
        for (std::size_t s = 0; s < kNumSources; ++s) {
            if (spans[s].begin == spans[s].end) continue;
            estimate(evidence_[s], spans[s], depth);
            for (Group& group : groups_) {
                if (group.chance * path_chance < min_confidence_) group.size = 0;
            }
            scatter();
            for (const Group& group : groups_) {
                if (group.size) add(first, parent, path_chance, depth, s, group);
            }
        }
        for (std::size_t i = first; i < candidates_.size(); ++i) {
            heap_.push_back({candidates_[i].path_chance, static_cast<std::uint32_t>(i)});
            std::push_heap(heap_.begin(), heap_.end());
        }
    }

    // Add a child, or merge it with the one that the other source proposed.
    void add(std::size_t first, std::int32_t parent, double path_chance, std::uint32_t depth,
             std::size_t source, const Group& group) {
        const auto feature = static_cast<std::uint8_t>(std::min(kMaxMatch, group.longest + depth));
        for (std::size_t i = first; i < candidates_.size(); ++i) {
            Candidate& known = candidates_[i];
            if (known.token != group.token) continue;
            known.spans[source] = group.span;
            if (group.chance > known.confidence) {
                known.confidence = group.chance;
                known.path_chance = group.chance * path_chance;
                known.source = static_cast<std::uint8_t>(source);
                known.feature = feature;
            }
            return;
        }
        Candidate candidate{group.token,
                            parent,
                            group.chance,
                            group.chance * path_chance,
                            static_cast<std::uint8_t>(source),
                            feature,
                            depth + 1,
                            {}};
        candidate.spans[source] = group.span;
        candidates_.push_back(candidate);
    }

    // Fill groups_ with the tokens that follow at this depth and their chances.
    void estimate(const Evidence& evidence, Span span, std::uint32_t depth) {
        groups_.clear();
        members_.clear();
        levels_.clear();
        std::uint32_t total = 0;
        double rest = 1.0;
        for (std::uint32_t i = span.begin; i < span.end; ++i) {
            const Occurrence& o = evidence.occurrences[pool_[i]];
            if (o.next + depth >= o.end) continue;  // its text ends here
            if (levels_.empty() || levels_.back().length != o.length) {
                if (!levels_.empty()) rest = close(total, rest, depth);
                levels_.push_back({o.length, 0.0});
            }
            total += o.times;
            const std::uint32_t group = group_of(evidence.tokens[o.next + depth], o.length);
            const auto level = static_cast<std::uint32_t>(levels_.size() - 1);
            members_.push_back({pool_[i], o.times, group, level});
        }
        if (members_.empty()) return;
        close(total, rest, depth);
        double weight = 0.0;
        for (std::size_t i = levels_.size(); i-- > 0;) {
            weight += levels_[i].weight;
            levels_[i].weight = weight;
        }
        for (const Member& member : members_) {
            groups_[member.group].chance += levels_[member.level].weight * member.times;
        }
    }

    // Weigh the last level: its share of what longer matches left, per occurrence.
    double close(std::uint32_t total, double rest, std::uint32_t depth) {
        const double surprise = 8.0 / (4.0 + levels_.back().length + depth);
        const double share = total / (total + surprise * static_cast<double>(groups_.size()));
        levels_.back().weight = rest * share / total;
        return rest * (1.0 - share);
    }

    std::uint32_t group_of(Token token, std::uint32_t length) {
        for (std::uint32_t g = 0; g < groups_.size(); ++g) {
            if (groups_[g].token == token) {
                ++groups_[g].size;
                return g;
            }
        }
        groups_.push_back({token, 0.0, length, 1, {}});
        return static_cast<std::uint32_t>(groups_.size() - 1);
    }

    // Give each group that still has a size its occurrences as a span of pool_.
    void scatter() {
        auto next = static_cast<std::uint32_t>(pool_.size());
        for (Group& group : groups_) {
            group.span = {next, next};
            next += group.size;
        }
        pool_.resize(next);
        for (const Member& member : members_) {
            Group& group = groups_[member.group];
            if (group.size) pool_[group.span.end++] = member.occurrence;
        }
    }

    struct Member {
        std::uint32_t occurrence;
        std::uint32_t times;
        std::uint32_t group;
        std::uint32_t level;
    };

    struct Level {  // occurrences of one match length
        std::uint32_t length;
        double weight;
    };

    Evidence evidence_[kNumSources]{};
    double min_confidence_ = 0.0;
    std::vector<std::uint32_t> pool_;  // indices of occurrences
    std::vector<Candidate> candidates_;
    std::vector<Ranked> heap_;
    std::vector<Group> groups_;
    std::vector<Member> members_;
    std::vector<Level> levels_;
};

}  // namespace quickmatch::suffix
