"""What speculation did over some time, as sums, and the rates that people know them by.

Owns the definitions of the rates; every display, metric and decision takes them from here. The
sums come from an engine's report (msgspec's SpeculationStats as a mapping), which starts at zero
with each engine process. Invariant: rates of no work are None, never a made-up number.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

DRAFTERS = ("prediction", "suffix_local", "suffix_global", "grammar", "head", "draft_model")


class SpeculationCounts(BaseModel):
    """Sums over some time; see the engine's SpeculationStats for each field."""

    model_config = ConfigDict(frozen=True)

    num_verified: int = 0
    num_plain: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    num_emitted: int = 0
    busy_s: float = 0.0
    plain_s: float = 0.0
    draft_s: float = 0.0

    @classmethod
    def of(cls, report: Mapping[str, Any] | None) -> "SpeculationCounts":
        """Return the sums in an engine's report; zeros where there is none."""
        return cls(**{name: (report or {}).get(name, 0) for name in cls.model_fields})

    def plus(self, other: "SpeculationCounts") -> "SpeculationCounts":
        """Return both together."""
        return self._with(other, 1)

    def since(self, earlier: "SpeculationCounts") -> "SpeculationCounts":
        """Return what came after `earlier`, an older report of the same engine.

        If the sums have gone down the engine has been started again: all of it is new.
        """
        if any(getattr(self, n) < getattr(earlier, n) for n in type(self).model_fields):
            return self
        return self._with(earlier, -1)

    @property
    def hit_rate(self) -> float | None:
        """Drafted tokens that the target accepted, of those that it verified."""
        return self.num_accepted / self.num_proposed if self.num_proposed else None

    @property
    def accepted_length(self) -> float | None:
        """Tokens a sequence got from a forward of the target; 1.0 is plain decoding."""
        num_steps = self.num_verified + self.num_plain
        return self.num_emitted / num_steps if num_steps else None

    @property
    def speed_up(self) -> float | None:
        """Measured speed over that of plain decoding of the same tokens on this machine."""
        return self.plain_s / self.busy_s if self.busy_s > 0 and self.plain_s > 0 else None

    def figures(self) -> dict[str, float]:
        """Return the rates that there are, rounded for people."""
        names = ("hit_rate", "accepted_length", "speed_up")
        values = {name: getattr(self, name) for name in names}
        return {name: round(value, 4) for name, value in values.items() if value is not None}

    def _with(self, other: "SpeculationCounts", sign: int) -> "SpeculationCounts":
        names = type(self).model_fields
        return SpeculationCounts(**{n: getattr(self, n) + sign * getattr(other, n) for n in names})


def drafter_shares(report: Mapping[str, Any]) -> dict[str, float]:
    """Return each drafter's share of all accepted tokens; empty before the first."""
    sources = report.get("sources") or {}
    accepted = {d: sources[d]["num_accepted"] for d in DRAFTERS if d in sources}
    total = sum(accepted.values())
    return {drafter: count / total for drafter, count in accepted.items()} if total else {}
