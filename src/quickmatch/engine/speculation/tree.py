"""A draft: a tree of candidate tokens that may follow a sequence.

Owns the shape and its operations (paths, pruning, merging). Plain Python; it knows no tensors, no
drafter and no controller.

Invariant: `parents[i] < i`, -1 for a child of the sequence's last token, so that every list in
order is a topological order and any prefix-closed choice of nodes is a tree again; no two children
of a parent hold the same token.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol


class Source(IntEnum):
    """Who proposed a node."""

    PREDICTION = 0  # the caller's `prediction`
    SUFFIX_LOCAL = 1  # the request's own prompt and output
    SUFFIX_GLOBAL = 2  # past outputs of the tenant
    GRAMMAR = 3  # what structured output leaves no choice about
    HEAD = 4
    DRAFT_MODEL = 5


MODEL_SOURCES = (Source.HEAD, Source.DRAFT_MODEL)  # those that run a model

TreeColumns = tuple[list[int], list[int], list[float], list[int], list[int]]  # DraftTree's lists


class Draft(Protocol):
    """What a drafter has made: a DraftTree, or one that lies in native memory.

    Of such a one each list is made anew when it is asked for; `DraftTree.of` makes all.
    """

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def parents(self) -> list[int]: ...
    @property
    def confidences(self) -> list[float]: ...
    @property
    def sources(self) -> list[int]: ...
    @property
    def features(self) -> list[int]: ...
    def __len__(self) -> int: ...


@dataclass(slots=True)
class DraftTree:
    """Candidate tokens. Node i's fields are at index i of every list.

    confidences[i] is the drafter's raw estimate of P(token | the path to it was accepted), in
    (0, 1]; features[i] is a small whole number that tells apart what the raw estimate does not
    (the suffix drafters put the length of the match there); the controller calibrates by both.
    """

    token_ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # values of Source
    features: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def of(cls, draft: Draft) -> "DraftTree":
        """Return a draft as a tree of Python's lists: itself if it is one."""
        if isinstance(draft, DraftTree):
            return draft
        return cls(draft.token_ids, draft.parents, draft.confidences, draft.sources, draft.features)

    def add(
        self, token_id: int, parent: int, confidence: float, source: int, feature: int = 0
    ) -> int:
        """Append a node; return its index."""
        self.token_ids.append(token_id)
        self.parents.append(parent)
        self.confidences.append(confidence)
        self.sources.append(source)
        self.features.append(feature)
        return len(self.token_ids) - 1

    @classmethod
    def chain(
        cls,
        token_ids: Iterable[int],
        confidences: Iterable[float],
        source: int,
        feature: int = 0,
    ) -> "DraftTree":
        """Return a tree without branches."""
        tree = cls()
        for token_id, confidence in zip(token_ids, confidences, strict=True):
            tree.add(token_id, len(tree) - 1, confidence, source, feature)
        return tree

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children."""
        return all(parent == index - 1 for index, parent in enumerate(self.parents))

    def depths(self) -> list[int]:
        """Return each node's depth; a child of the sequence's last token has depth 1."""
        return depths_of(self.parents)

    def children(self) -> dict[int, dict[int, int]]:
        """Return for each node with children (-1: the root) a map of token id to child."""
        out: dict[int, dict[int, int]] = {}
        for index, (token_id, parent) in enumerate(zip(self.token_ids, self.parents, strict=True)):
            out.setdefault(parent, {})[token_id] = index
        return out

    def child(self, node: int, token_id: int) -> int:
        """Return the child of a node (-1: the root) that holds a token; -1 if none does."""
        for index in range(node + 1, len(self.token_ids)):
            if self.parents[index] == node and self.token_ids[index] == token_id:
                return index
        return -1

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root's child to `node`."""
        out = []
        while node >= 0:
            out.append(node)
            node = self.parents[node]
        return out[::-1]

    def keep(self, nodes: Iterable[int]) -> "DraftTree":
        """Return the tree of these nodes, in this order. A node's parent must come before it."""
        tree, new_index = DraftTree(), {-1: -1}
        for node in nodes:
            new_index[node] = tree.add(
                self.token_ids[node],
                new_index[self.parents[node]],
                self.confidences[node],
                self.sources[node],
                self.features[node],
            )
        return tree


def depths_of(parents: Iterable[int]) -> list[int]:
    """Return the depth of each node, told by its parent; a child of -1 has depth 1."""
    out: list[int] = []
    for parent in parents:
        out.append(1 if parent < 0 else out[parent] + 1)
    return out
