"""What speculation did since the start: the sums behind /metrics. Knows no decision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from quickmatch.engine.speculation.tree import DraftTree, Source


def _zeros() -> list[int]:
    return [0] * len(Source)


@dataclass(slots=True)
class Figures:
    """Sums; most fields are those of the wire's SpeculationStats."""

    num_verified: int = 0
    num_plain: int = 0
    num_emitted: int = 0
    busy_s: float = 0.0
    plain_s: float = 0.0
    draft_s: float = 0.0
    drifts: dict[str, int] = field(default_factory=dict)  # by traffic
    proposed: list[int] = field(default_factory=_zeros)  # by source
    accepted: list[int] = field(default_factory=_zeros)
    lengths: list[int] = field(default_factory=list)  # verifications, by how many were accepted

    @property
    def num_proposed(self) -> int:
        """Tokens verified, of all sources."""
        return sum(self.proposed)

    @property
    def num_accepted(self) -> int:
        """Tokens accepted, of all sources."""
        return sum(self.accepted)

    @property
    def accepted_by_position(self) -> list[int]:
        """Tokens accepted, by their place in the draft's path: first, second, …"""
        return list(accumulate(self.lengths[:0:-1]))[::-1]

    def add_verified(self, tree: DraftTree, accepted: Sequence[int]) -> None:
        """Count one verification."""
        self.num_verified += 1
        if len(accepted) >= len(self.lengths):
            self.lengths += [0] * (len(accepted) + 1 - len(self.lengths))
        self.lengths[len(accepted)] += 1
        sources = tree.sources
        if sources.count(sources[0]) == len(sources):
            self.proposed[sources[0]] += len(sources)
            self.accepted[sources[0]] += len(accepted)
            return
        for source in sources:
            self.proposed[source] += 1
        for node in accepted:
            self.accepted[sources[node]] += 1
