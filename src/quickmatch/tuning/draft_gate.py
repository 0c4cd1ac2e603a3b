"""The gate: what a new head is worth on held-back traffic, beside what stands now.

Owns the measurement and the verdict. Everything is measured with the real engine, in this process,
one sequence at a time, greedily, on prompts that no training saw:

- accepted length and acceptance rate with chains of a fixed depth, which depend on the head alone
  and not on this machine;
- tokens a second as it would serve, the controller choosing; plain decoding beside it. The arms
  take turns over parts of the prompts, so that a machine that is busy for a while is so for all.

A head passes if it is better than what stands: the deployed head, else plain decoding.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.store.documents import Json
from quickmatch.tuning.draft_answers import write_answers
from quickmatch.tuning.draft_data import TokenSequence

MAX_PROMPTS = 24
_NUM_ROUNDS = 3
_NOISE = 0.03  # share by which two speeds must differ to count as different
_PLAIN = "plain"


@dataclass(slots=True)
class Arm:
    """One way to decode, and what was measured of it."""

    name: str  # "plain", "current", "new"
    draft: str = ""  # version id or "" where there is none yet
    num_tokens: int = 0
    seconds: float = 0.0
    num_proposed: int = 0  # with chains of a fixed depth
    num_accepted: int = 0
    accepted_length: float = 1.0

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens a second, prefill included."""
        return self.num_tokens / max(self.seconds, 1e-9)

    @property
    def acceptance(self) -> float:
        """Accepted ÷ proposed."""
        return self.num_accepted / max(1, self.num_proposed)

    def as_json(self) -> Json:
        """Return the figures, for the job's metrics."""
        shown = {"tokens_per_s": round(self.tokens_per_s, 1)}
        if self.name != _PLAIN:
            shown |= {
                "acceptance_rate": round(self.acceptance, 4),
                "accepted_length": round(self.accepted_length, 4),
            }
        return {"draft": self.draft, **shown, "num_tokens": self.num_tokens}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head to be measured."""

    name: str
    draft: str
    folder: Path


@dataclass(slots=True)
class Gate:
    """Measures heads on one loaded target, which must run nothing else meanwhile."""

    runner: ModelRunner
    config: EngineConfig  # of the runner
    adapter: str  # version id; "": base
    adapter_path: str
    depth: int
    max_tokens: int  # an answer
    should_stop: Callable[[], bool] = lambda: False
    _heads: dict[str, Any] = field(default_factory=dict)

    def measure(
        self, sequences: Sequence[TokenSequence], candidates: Sequence[Candidate]
    ) -> list[Arm]:
        """Return plain decoding and each candidate, measured. Raises ModelLoadError."""
        prompts = [s.prompt for s in sequences[:MAX_PROMPTS]]
        for candidate in candidates:
            self._heads[candidate.name] = self.runner.read_draft(str(candidate.folder))
        arms = [Arm(_PLAIN), *(Arm(c.name, c.draft) for c in candidates)]
        for arm in arms[1:]:
            self._measure_depth(arm, prompts)
        self._measure_speed(arms, prompts)
        self._use(_PLAIN)
        return arms

    def _measure_depth(self, arm: Arm, prompts: list[list[int]]) -> None:
        fixed = SpeculationConfig(
            drafters=("head",),
            is_adaptive=False,
            max_depth=self.depth,
            max_draft_tokens=self.depth,
        )
        engine = self._engine(fixed)
        self._use(arm.name)
        self._write(engine, prompts)
        stats = engine.stats().speculation
        assert stats is not None
        arm.num_proposed, arm.num_accepted = stats.num_proposed, stats.num_accepted
        arm.accepted_length = stats.num_emitted / max(1, stats.num_verified + stats.num_plain)

    def _measure_speed(self, arms: list[Arm], prompts: list[list[int]]) -> None:
        engines = {arm.name: self._engine(_speculation(arm)) for arm in arms}
        for engine in engines.values():
            if engine.speculator is not None:
                engine.speculator.measure_costs(1)
        for number in range(_NUM_ROUNDS):
            part = prompts[number::_NUM_ROUNDS]
            for arm in arms:
                self._use(arm.name)
                if number == 0:  # once before the clock runs: kernels, costs, calibration
                    self._write(engines[arm.name], part)
                began = time.perf_counter()
                arm.num_tokens += self._write(engines[arm.name], part)
                arm.seconds += time.perf_counter() - began

    def _engine(self, speculation: SpeculationConfig) -> Engine:
        config = replace(
            self.config, max_num_seqs=1, enable_prefix_caching=False, speculation=speculation
        )
        engine = Engine(self.runner, config)
        if self.adapter:  # the runner has it once, every engine its own count of who uses it
            self.runner.unload_adapter(self.adapter)
            engine.load_adapter(self.adapter, self.adapter_path)
        return engine

    def _use(self, name: str) -> None:
        """Let the head of that arm draft, or none."""
        if self.adapter in self.runner.draft_versions:
            self.runner.unload_draft(self.adapter)
        if name != _PLAIN:
            self.runner.put_draft(self.adapter, name, self._heads[name])

    def _write(self, engine: Engine, prompts: list[list[int]]) -> int:
        answers = write_answers(
            engine,
            prompts,
            adapter=self.adapter or None,
            temperature=0.0,
            max_tokens=self.max_tokens,
            on_step=lambda _: self.should_stop(),
        )
        return sum(map(len, answers))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the new head is let in, and why."""

    passed: bool
    reason: str


def judge(arms: Sequence[Arm]) -> Verdict:
    """Compare the arm "new" with what stands."""
    by_name = {arm.name: arm for arm in arms}
    new, plain, current = by_name["new"], by_name[_PLAIN], by_name.get("current")
    speed = f"{new.tokens_per_s:.0f} tokens/s"
    if new.tokens_per_s <= plain.tokens_per_s:
        return Verdict(
            False, f"it does not beat plain decoding: {speed} to {plain.tokens_per_s:.0f}"
        )
    if current is None:
        return Verdict(True, f"it beats plain decoding: {speed} to {plain.tokens_per_s:.0f}")
    compared = (
        f"{current.draft}: accepted length {new.accepted_length:.2f} to "
        f"{current.accepted_length:.2f}, {speed} to {current.tokens_per_s:.0f}"
    )
    ratio = new.tokens_per_s / current.tokens_per_s
    is_better = ratio > 1 + _NOISE or (
        ratio > 1 - _NOISE and new.accepted_length > current.accepted_length
    )
    return Verdict(is_better, f"it {'beats' if is_better else 'does not beat'} {compared}")


def _speculation(arm: Arm) -> SpeculationConfig:
    return SpeculationConfig(drafters=() if arm.name == _PLAIN else ("head",))
