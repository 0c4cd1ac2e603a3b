"""A tree of likely continuations, from the places where a context occurred before.

Owns the estimate and the search. The chance of a token after a node is Witten-Bell's: the counts at
each match length, longest first, blended by how often that length has been surprised. Only
occurrences that agree with the path so far speak. Nodes come best first, by the chance of their
path. It knows no index: an occurrence is a place to read on from.

Source: Witten and Bell 1991, method C; the weight of a surprise falls with the match length
(measured: docs/lab-notes.md). The plain twin of src/native/suffix/continuations.hpp, operation for
operation, so that the two agree to the last bit.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from quickmatch.engine.speculation.ngram_chains import MAX_MATCH, Occurrence
from quickmatch.engine.speculation.tree import Source, TreeColumns

_SOURCES = (int(Source.SUFFIX_LOCAL), int(Source.SUFFIX_GLOBAL))


class Evidence(NamedTuple):
    """Occurrences in one text, longest match first."""

    tokens: Sequence[int]
    occurrences: list[Occurrence]


@dataclass(slots=True)
class _Group:
    """Occurrences that go on with the same token."""

    longest: int
    chance: float = 0.0
    members: list[Occurrence] = field(default_factory=list)


@dataclass(slots=True)
class _Candidate:
    token: int
    parent: int
    confidence: float
    path_chance: float
    source: int  # 0: the sequence itself, 1: past outputs
    feature: int
    depth: int
    occurrences: list[list[Occurrence]]  # by source


class Continuations:
    """One draft in the making."""

    def __init__(self, evidence: Sequence[Evidence], min_confidence: float) -> None:
        self._evidence = evidence
        self._min_confidence = min_confidence
        self._candidates: list[_Candidate] = []
        self._heap: list[tuple[float, int]] = []  # of equals the earlier comes first

    def grow(self, max_nodes: int, max_depth: int) -> TreeColumns:
        """Return the likeliest nodes whose path has at least min_confidence."""
        tree: TreeColumns = ([], [], [], [], [])
        if max_nodes > 0:
            self._expand(-1, 1.0, 0, [source.occurrences for source in self._evidence])
        while self._heap and len(tree[0]) < max_nodes:
            best = self._candidates[heapq.heappop(self._heap)[1]]
            tree[0].append(best.token)
            tree[1].append(best.parent)
            tree[2].append(best.confidence)
            tree[3].append(_SOURCES[best.source])
            tree[4].append(best.feature)
            if best.depth < max_depth and len(tree[0]) < max_nodes:
                self._expand(len(tree[0]) - 1, best.path_chance, best.depth, best.occurrences)
        return tree

    def _expand(
        self, parent: int, path_chance: float, depth: int, occurrences: list[list[Occurrence]]
    ) -> None:
        """Push the children of a node; what both sources propose is one child."""
        children: dict[int, _Candidate] = {}
        for source, members in enumerate(occurrences):
            for token, group in _estimate(self._evidence[source].tokens, members, depth).items():
                chance = group.chance * path_chance
                if chance < self._min_confidence:
                    continue
                feature = min(MAX_MATCH, group.longest + depth)
                new = _Candidate(
                    token, parent, group.chance, chance, source, feature, depth + 1, [[], []]
                )
                known = children.setdefault(token, new)
                known.occurrences[source] = group.members
                if group.chance > known.confidence:
                    new.occurrences = known.occurrences
                    children[token] = new
        for child in children.values():
            heapq.heappush(self._heap, (-child.path_chance, len(self._candidates)))
            self._candidates.append(child)


def _estimate(
    tokens: Sequence[int], occurrences: list[Occurrence], depth: int
) -> dict[int, _Group]:
    """Return the tokens that follow at this depth, with their chances."""
    groups: dict[int, _Group] = {}
    levels: list[tuple[int, float]] = []  # match length, weight of one occurrence
    placed: list[tuple[_Group, int, int]] = []  # group, times, level
    total, rest, length = 0, 1.0, 0
    for occurrence in occurrences:
        if occurrence.next + depth >= occurrence.end:
            continue  # its text ends here
        if length and occurrence.length != length:
            rest = _close(levels, length, total, len(groups), rest, depth)
        length = occurrence.length
        total += occurrence.times
        group = groups.setdefault(tokens[occurrence.next + depth], _Group(length))
        group.members.append(occurrence)
        placed.append((group, occurrence.times, len(levels)))
    if placed:
        _close(levels, length, total, len(groups), rest, depth)
    weight = 0.0
    weights = [0.0] * len(levels)  # of an occurrence: its own level's and all shorter ones'
    for level in reversed(range(len(levels))):
        weight += levels[level][1]
        weights[level] = weight
    for group, times, level in placed:
        group.chance += weights[level] * times
    return groups


def _close(
    levels: list[tuple[int, float]],
    length: int,
    total: int,
    num_groups: int,
    rest: float,
    depth: int,
) -> float:
    """Weigh a level: per occurrence, its share of what longer matches left. Return the rest."""
    surprise = 8.0 / (4.0 + length + depth)
    share = total / (total + surprise * num_groups)
    levels.append((length, rest * share / total))
    return rest * (1.0 - share)
