"""The state of one run: plan, report, screen, the folders it works with, and rates of arms.

Owns how an arm's turns become samples and rows; the sections say which calls and which arms.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, interleave
from benchmarks.speculation.arms import PEERS_BY_NAME, PLAIN, Parts
from benchmarks.speculation.calls import Call, Encoder
from benchmarks.speculation.figures import (
    equal_rows,
    missing_rows,
    rate_rows,
    speed_rows,
)
from benchmarks.speculation.plan import Plan
from benchmarks.speculation.running import Arm
from benchmarks.speculation.streams import Streams
from benchmarks.speculation.turns import Turns, equal_share, measure_name
from examples.credit_cards.screen import Screen


@dataclass(slots=True)
class Bench:
    """One run."""

    plan: Plan
    report: Report
    screen: Screen
    folder: Path  # where the report goes
    encoder: Encoder
    parts: dict[str, Parts] = field(default_factory=dict)  # target -> its parts
    streams: dict[str, Streams] = field(default_factory=dict)

    def write(self) -> None:
        """Write what has been found so far."""
        self.report.write(self.folder)

    def speeds(
        self,
        arms: Mapping[str, Arm],
        rounds: Sequence[Sequence[Call]],
        label: str,
        concurrency: int,
        *,
        workloads: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        is_exact: bool = True,
    ) -> dict[str, Turns]:
        """Let arms take turns over the rounds; add samples and rows; return the turns.

        workloads: those of a mixed stream, which get rows of their own. is_exact: whether the
        texts are comparable (greedy), so that the share of equal ones is told.
        """
        able = {name: arm for name, arm in arms.items() if _is_able(name, concurrency)}
        turns = {
            name: Turns(arm, rounds, concurrency, label, dict(settings or {}))
            for name, arm in able.items()
            if arm.contender is not None
        }
        self._take(turns, len(rounds), f"{label}, B={concurrency}")
        running = {name: taken for name, taken in turns.items() if not able[name].reason}
        missing = {name: arm.reason for name, arm in able.items() if arm.reason}
        self._add_rows(running, missing, label, concurrency, workloads)
        if is_exact:
            plain = running[PLAIN]
            shares = {n: equal_share(t, plain) for n, t in running.items() if n != PLAIN}
            form = "bfloat16" if self.plan.quantization == "none" else self.plan.quantization
            self.report.add(*equal_rows(shares, f"{form}, {label}, B={concurrency}"))
        self.write()
        return running

    def _take(self, turns: Mapping[str, Turns], num_rounds: int, what: str) -> None:
        """Fill the report's samples."""
        warm_up = self.plan.warm_up
        with self.screen.bar(what, num_rounds * len(turns)) as bar:
            samples = interleave(
                turns,
                repetitions=num_rounds - warm_up,
                warm_up=warm_up,
                on_turn=lambda *_: bar.advance(),
            )
        for name, values in samples.items():
            if turns[name].arm.reason:
                continue  # it failed on the way: its turns do not pair with the others'
            self.report.samples.setdefault(name, {}).update(values)

    def _add_rows(
        self,
        turns: Mapping[str, Turns],
        missing: Mapping[str, str],
        label: str,
        concurrency: int,
        workloads: Iterable[str],
    ) -> None:
        samples = {name: self.report.samples[name] for name in turns}
        self.report.add(*speed_rows(samples, label, concurrency, {}))
        self.report.add(*missing_rows(measure_name("decode", label, concurrency), missing))
        self.report.add(*rate_rows(samples, label, concurrency))
        for workload in workloads:
            self.report.add(*speed_rows(samples, workload, concurrency, {}))
            self.report.add(*rate_rows(samples, workload, concurrency))


def _is_able(name: str, concurrency: int) -> bool:
    """Peers that decode one sequence at a time have no larger batches; none has 32 slots."""
    peer = PEERS_BY_NAME.get(name)
    return peer is None or concurrency == 1 or (peer.is_batched and concurrency <= 8)
