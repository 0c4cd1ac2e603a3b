"""Running contenders of one shape and precision: peers may fail without ending the run.

A peer that fails, at its start or in a turn, keeps its reason and answers nothing from there on;
its rows say why. Ours is not forgiven: without it there is nothing to compare.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender, ContenderFailed, ContenderSpec
from benchmarks.engine.contenders import OURS, PEERS_BY_NAME, our_spec, peer_spec
from benchmarks.engine.plan import NUM_HELD, Plan, ShapePlan
from benchmarks.peers import PeerUnavailable


@dataclass(slots=True)
class Running:
    """One contender, running or failed. `notes`: why a measure is left out."""

    name: str
    max_batch: int = 32
    contender: Contender | None = None
    reason: str = ""  # why it runs no more
    info: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether it still answers."""
        return self.contender is not None

    def take(self) -> Contender:
        """Return its process. Raises ContenderFailed once it has failed."""
        if self.contender is None:
            raise ContenderFailed(self.reason)
        return self.contender

    def generate(self, prompts: list[list[int]], max_tokens: int) -> float | None:
        """Extend all prompts at once; return the seconds, or None once it has failed."""
        if self.contender is None:
            return None
        try:
            return self.contender.generate(prompts, max_tokens)
        except ContenderFailed as error:
            self.fail(str(error))
            return None

    def fail(self, reason: str) -> None:
        """Note why, and end its process. Raises ContenderFailed if it is ours."""
        self.reason = reason
        self.close()
        if self.name == OURS:
            raise ContenderFailed(reason)
        print(f"  {self.name}: not measured: {reason}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End its process; nothing happens if that is over."""
        contender, self.contender = self.contender, None
        if contender is not None:
            contender.close()


@contextmanager
def running(
    plan: Plan, of_shape: ShapePlan, precision: str, model: Path
) -> Iterator[dict[str, Running]]:
    """Start ours and each peer that has the precision, for the length of the block."""
    group: dict[str, Running] = {}
    try:
        for spec in _specs(plan, of_shape, precision):
            peer = PEERS_BY_NAME.get(spec.name)
            one = group[spec.name] = Running(spec.name, peer.max_batch if peer else 32)
            start(one, replace(spec, log=f"{spec.name}-{of_shape.shape.name}-{precision}"), model)
        yield group
    finally:
        for one in group.values():
            one.close()


def _specs(plan: Plan, of_shape: ShapePlan, precision: str) -> list[ContenderSpec]:
    specs = [
        our_spec(
            precision,
            max_len=of_shape.max_len,
            num_adapters=NUM_HELD + 1,
            num_threads=plan.num_threads,
        )
    ]
    for name in plan.peers:
        peer = PEERS_BY_NAME[name]
        fits = peer.only_model_type in ("", of_shape.shape.model_type)
        if fits and precision in peer.options:
            specs.append(
                peer_spec(
                    peer, precision, max_len=of_shape.max_len, llama_threads=plan.llama_threads
                )
            )
    return specs


def start(one: Running, spec: ContenderSpec, model: Path) -> None:
    """Start its process and have it load the model, or note why it does not run."""
    try:
        one.contender = Contender(spec)
        seconds = one.contender.load(model)
        one.info = one.contender.info | {"load_s": round(seconds, 1)}
        print(f"  {one.name}: loaded in {seconds:.1f} s", file=sys.stderr, flush=True)
    except (PeerUnavailable, ContenderFailed) as error:
        one.fail(str(error))
