"""A turn of an arm: one stream of calls, answered and timed.

    throughput  tokens ÷ the whole time, prompts included: what a caller sees
    decode      less a one-token pass over the same calls: (tokens − calls) ÷ (whole − first)

All arms get the same stream in the same round, and every round brings calls that no arm has seen:
an index must not be asked twice for what it has just learnt.

One at a time, every call is timed by itself, so a shuffled stream of several workloads also gives
the figures of each.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.speculation.calls import Call, answer_of
from benchmarks.speculation.running import Arm

ALL = "all"  # the whole stream, where it mixes workloads


def measure_name(kind: str, workload: str, concurrency: int) -> str:
    """Return the name that a value bears in samples and rows."""
    return f"{kind}, {workload}, B={concurrency}"


@dataclass(slots=True)
class Tally:
    """Sums over calls."""

    num_calls: int = 0
    num_tokens: int = 0
    whole_s: float = 0.0
    first_s: float = 0.0
    proposed: float = 0.0
    accepted: float = 0.0
    emitted: float = 0.0  # while decoding, bonus tokens included
    forwards: float = 0.0  # of the target, while decoding, a sequence each

    def values(self) -> dict[str, float]:
        """Return what there is to say; rates of nothing are left out."""
        found = {"throughput": self.num_tokens / self.whole_s}
        # A disturbed first pass can take longer than all of the next: bound what it counts.
        decode_s = self.whole_s - min(self.first_s, self.whole_s / 2)
        found["decode"] = max(1, self.num_tokens - self.num_calls) / decode_s
        if self.proposed:
            found["hit rate"] = self.accepted / self.proposed
        if self.forwards:
            found["accepted length"] = self.emitted / self.forwards
        return found

    def count(self, stats: Mapping[str, Any]) -> None:
        """Add what speculation did."""
        self.proposed += stats.get("num_proposed", 0)
        self.accepted += stats.get("num_accepted", 0)
        self.emitted += stats.get("num_emitted", 0)
        self.forwards += stats.get("num_verified", 0) + stats.get("num_plain", 0)


@dataclass(slots=True)
class Turns:
    """One arm's turns over prepared rounds; a call of it is one turn, for `interleave`."""

    arm: Arm
    rounds: Sequence[Sequence[Call]]
    concurrency: int
    label: str  # of the whole stream
    settings: Mapping[str, Any] = field(default_factory=dict)  # temperature, seed, ignore_eos
    answers: list[list[list[int]]] = field(default_factory=list)  # [round][call] -> tokens
    sources: dict[str, list[int]] = field(default_factory=dict)  # drafter -> proposed, accepted
    _next: int = 0

    def __call__(self) -> dict[str, float]:
        """Take a turn; nothing is returned once the arm has failed."""
        calls = self.rounds[self._next]
        self._next += 1
        # Not counted: while others ran, its caches went cold.
        self.arm.ask("complete", calls=[calls[0].as_json(max_tokens=2)] * 2, concurrency=1)
        first = self._ask(calls, max_tokens=1)
        whole = self._ask(calls)
        if first is None or whole is None:
            return {}
        self.answers.append([answer_of(output["token_ids"]) for output in whole["outputs"]])
        self._count_sources(whole.get("stats") or {})
        values: dict[str, float] = {}
        for workload, tally in self._tallies(calls, first, whole).items():
            for kind, value in tally.values().items():
                values[measure_name(kind, workload, self.concurrency)] = value
        return values

    def _ask(self, calls: Sequence[Call], max_tokens: int | None = None) -> dict[str, Any] | None:
        as_json = [call.as_json(max_tokens=max_tokens) for call in calls]
        fields = dict(self.settings)
        return self.arm.ask("complete", calls=as_json, concurrency=self.concurrency, **fields)

    def _tallies(
        self, calls: Sequence[Call], first: Mapping[str, Any], whole: Mapping[str, Any]
    ) -> dict[str, Tally]:
        """The whole stream and, where calls were timed one by one, each workload of several."""
        total = Tally(whole_s=whole["seconds"], first_s=first["seconds"])
        total.count(whole.get("stats") or {})
        tallies: dict[str, Tally] = defaultdict(Tally)
        for call, begun, ended in zip(calls, first["outputs"], whole["outputs"], strict=True):
            num_tokens = max(1, len(answer_of(ended["token_ids"])))
            for tally in (total, tallies[call.workload]):
                tally.num_calls += 1
                tally.num_tokens += num_tokens
            own = tallies[call.workload]
            own.whole_s += ended["seconds"]
            own.first_s += begun["seconds"]
            own.count(ended.get("stats") or {})
        if self.concurrency > 1 or len(tallies) == 1:
            return {self.label: total}
        return {self.label: total, **tallies}

    def _count_sources(self, stats: Mapping[str, Any]) -> None:
        for name, counted in stats.get("sources", {}).items():
            sums = self.sources.setdefault(name, [0, 0])
            sums[0] += counted["num_proposed"]
            sums[1] += counted["num_accepted"]


def equal_share(turns: Turns, reference: Turns) -> float | None:
    """Return the share of calls that both answered with the same tokens."""
    pairs = [
        (mine, theirs)
        for ours, others in zip(turns.answers, reference.answers, strict=False)
        for mine, theirs in zip(ours, others, strict=True)
    ]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs) if pairs else None


def rounds_of(calls: Sequence[Call], num_rounds: int, size: int) -> list[list[Call]]:
    """Cut a list into disjoint rounds. Raises ValueError if there are too few calls."""
    if len(calls) < num_rounds * size:
        raise ValueError(f"{len(calls)} calls are too few for {num_rounds} rounds of {size}")
    return [list(calls[i * size : (i + 1) * size]) for i in range(num_rounds)]


def num_tokens(answers: Iterable[Iterable[Sequence[int]]]) -> int:
    """Return how many tokens answers of several rounds hold."""
    return sum(len(answer) for turn in answers for answer in turn)
