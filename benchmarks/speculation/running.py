"""Running arms: contenders that may fail without ending the run, started and warmed up.

An arm that fails, at its start or in a turn, keeps its reason and answers nothing from there on;
its rows say why. Only `plain` is not forgiven: without it there is nothing to compare with.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contender import Contender, ContenderFailed, ContenderSpec
from benchmarks.peers import PeerUnavailable
from benchmarks.speculation.answers import Answered
from benchmarks.speculation.arms import (
    OURS,
    PEERS_BY_NAME,
    PLAIN,
    PartMissing,
    Parts,
    learns_from_traffic,
    our_spec,
    peer_spec,
    uses_head,
)
from benchmarks.speculation.calls import Call

_WARM_CONCURRENCY = 8
_NUM_SERVED = 64  # warm-up calls that an arm of ours serves; older ones it remembers


@dataclass(slots=True)
class Arm:
    """One arm, running or failed."""

    name: str
    contender: Contender | None = None
    reason: str = ""  # why it runs no more
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is our engine."""
        return self.name in OURS

    def ask(self, op: str, **fields: Any) -> dict[str, Any] | None:
        """Have it do something; None once it has failed."""
        if self.contender is None:
            return None
        try:
            return self.contender.ask(op, **fields)
        except ContenderFailed as error:
            self.fail(str(error))
            return None

    def fail(self, reason: str) -> None:
        """Note why, and end its process. Raises ContenderFailed if it is the plain arm."""
        if self.name == PLAIN:
            raise ContenderFailed(reason)
        self.reason = reason
        print(f"  {self.name}: not measured: {reason}", file=sys.stderr, flush=True)
        self.close()

    def close(self) -> None:
        """End its process; nothing happens if that is over."""
        contender, self.contender = self.contender, None
        if contender is not None:
            contender.close()


@contextmanager
def running(
    names: Iterable[str], parts: Parts, *, dtype: str = "auto", quantization: str = "none"
) -> Iterator[dict[str, Arm]]:
    """Start and load arms for the length of the block; those that fail are there with a reason.

    dtype, quantization: of ours; peers run as they come.
    """
    arms: dict[str, Arm] = {}
    try:
        for name in names:
            arms[name] = _start(name, parts, dtype, quantization)
        yield arms
    finally:
        for arm in arms.values():
            arm.close()


def warm_up(arms: Iterable[Arm], past: Answered) -> None:
    """Give what learns from traffic its past: the train calls, never those that are measured.

    Ours remembers the older answers, as a server restores them from its traces, and serves the
    newest calls. A peer that drafts from earlier calls serves all of them.
    """
    for arm in arms:
        if not learns_from_traffic(arm.name) or arm.contender is None:
            continue
        print(f"  {arm.name}: warm-up traffic", file=sys.stderr, flush=True)
        served: Sequence[Call] = past.calls
        if arm.is_ours:
            arm.ask("remember", outputs=past.answers[:-_NUM_SERVED])
            served = past.calls[-_NUM_SERVED:]
        plain_calls = [call.without_prediction().as_json() for call in served]
        concurrency = _WARM_CONCURRENCY
        # Alone first: what a step costs and what a draft is worth is learnt at that size too.
        arm.ask("complete", calls=plain_calls[: len(plain_calls) // 4], concurrency=1)
        arm.ask("complete", calls=plain_calls[len(plain_calls) // 4 :], concurrency=concurrency)


def _start(name: str, parts: Parts, dtype: str, quantization: str) -> Arm:
    arm = Arm(name)
    try:
        arm.contender = Contender(_spec(name, parts, dtype, quantization))
        seconds = arm.contender.load(parts.target)
        arm.info = arm.contender.info | {"load_s": round(seconds, 1)}
        if uses_head(name):
            if parts.head is None:
                raise PartMissing("there is no trained head")
            arm.info |= arm.contender.ask("load_draft", path=str(parts.head))
        print(f"  {name}: loaded in {seconds:.1f} s", file=sys.stderr, flush=True)
    except (PeerUnavailable, ContenderFailed, PartMissing) as error:
        arm.fail(str(error))
    return arm


def _spec(name: str, parts: Parts, dtype: str, quantization: str) -> ContenderSpec:
    if name in OURS:
        return our_spec(name, parts, dtype=dtype, quantization=quantization)
    return peer_spec(PEERS_BY_NAME[name], parts)
