"""The gate: what a new head is worth on held-back traffic, beside what stands now.

Owns the measurement and the verdict. Everything is measured with the real engine, in this process,
one sequence at a time, greedily, on prompts that no training saw:

- accepted length and acceptance rate with chains of a fixed depth, which depend on the head alone
  and not on this machine;
- tokens a second as it would serve: beside the deployment's other drafters, with the answers that
  were learnt in the index of past outputs, the controller choosing. What stands is measured alike,
  and beside it plain decoding and the new head without any other drafter. The arms take turns over
  parts of the prompts, so that a machine that is busy for a while is so for all.

A head passes if it serves faster than what stands: the deployed head with the other drafters, or
these alone. There is one index here, where a server keeps one for each tenant.
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
from quickmatch.engine.speculation.suffix_index import PROMPT_TAIL
from quickmatch.store.documents import Json
from quickmatch.tuning.draft_answers import write_answers
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.sft import Stopped

MAX_PROMPTS = 24
_NUM_ROUNDS = 3
_NUM_WARM_UP = MAX_PROMPTS // _NUM_ROUNDS  # prompts that are answered before the clock runs
_NOISE = 0.03  # share by which two speeds must differ to count as different
_PLAIN, _CURRENT, _NEW, _ALONE = "plain", "current", "new", "new_alone"


@dataclass(slots=True)
class Arm:
    """One way to decode, and what was measured of it."""

    name: str  # "plain", "current", "new", "new_alone"
    draft: str = ""  # version id of its head, "" where it has none, or none yet
    num_tokens: int = 0
    seconds: float = 0.0
    num_proposed: int = 0  # with chains of a fixed depth
    num_accepted: int = 0
    accepted_length: float | None = None  # None: not measured

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
        if self.accepted_length is not None:
            shown |= {
                "acceptance_rate": round(self.acceptance, 4),
                "accepted_length": round(self.accepted_length, 4),
            }
        return {"draft": self.draft, **shown, "num_tokens": self.num_tokens}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head to be measured."""

    name: str  # "current", "new"
    draft: str
    folder: Path


@dataclass(slots=True)
class Gate:
    """Measures heads on one loaded target, which must run nothing else meanwhile."""

    runner: ModelRunner
    config: EngineConfig  # of the runner; its speculation is the deployment's
    adapter: str  # version id; "": base
    adapter_path: str
    depth: int
    max_tokens: int  # an answer
    max_length: int  # a prompt and its answer
    should_stop: Callable[[], bool] = lambda: False
    _heads: dict[str, Any] = field(default_factory=dict)

    def measure(
        self,
        held: Sequence[TokenSequence],
        learnt: Sequence[TokenSequence],
        candidates: Sequence[Candidate],
    ) -> list[Arm]:
        """Return all that is compared, measured on `held`. Raises ModelLoadError, Stopped.

        learnt: what the index is filled with, oldest first. candidates: "new", and "current" where
        a head drafts now.
        """
        prompts = [s.prompt for s in held[:MAX_PROMPTS]]
        for candidate in candidates:
            self._heads[candidate.name] = self.runner.read_draft(str(candidate.folder))
        arms = [Arm(_PLAIN), *(Arm(c.name, c.draft) for c in candidates)]
        for arm in arms[1:]:
            self._measure_depth(arm, prompts)
        if _CURRENT not in self._heads and self._drafts_without_head():
            arms.insert(1, Arm(_CURRENT))
        arms.append(Arm(_ALONE))
        self._measure_speed(arms, prompts, learnt)
        self._use(_PLAIN)
        return arms

    def _drafts_without_head(self) -> bool:
        served = self.config.speculation
        has_model = bool(served.draft_model) and "draft_model" in served.drafters
        return has_model or "suffix" in served.drafters

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

    def _measure_speed(
        self, arms: list[Arm], prompts: list[list[int]], learnt: Sequence[TokenSequence]
    ) -> None:
        engines = {arm.name: self._engine(self._speculation(arm)) for arm in arms}
        # Their answers are not in the index before, or calibration would see drafts too good.
        num_first = len(learnt) - min(_NUM_WARM_UP, len(learnt) // 2)
        outputs = [s.prompt[-PROMPT_TAIL:] + s.output for s in learnt[:num_first]]
        for arm in arms:
            engine = engines[arm.name]
            if engine.speculator is not None:
                engine.speculator.measure_costs(1)
            engine.remember("", self.adapter or None, outputs)
            self._use(arm.name)
            self._write(engine, [s.prompt for s in learnt[num_first:]])
        for number in range(_NUM_ROUNDS):
            part = prompts[number::_NUM_ROUNDS]
            for arm in arms:
                self._use(arm.name)
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

    def _speculation(self, arm: Arm) -> SpeculationConfig:
        served = self.config.speculation
        if arm.name == _NEW and "head" not in served.drafters:
            return replace(served, drafters=(*served.drafters, "head"))
        only: dict[str, tuple[str, ...]] = {_PLAIN: (), _ALONE: ("head",)}
        return replace(served, drafters=only.get(arm.name, served.drafters))

    def _use(self, name: str) -> None:
        """Let the head of that arm draft, or none."""
        if self.adapter in self.runner.draft_versions:
            self.runner.unload_draft(self.adapter)
        head = self._heads.get(_NEW if name == _ALONE else name)
        if head is not None:
            self.runner.put_draft(self.adapter, name, head)

    def _write(self, engine: Engine, prompts: list[list[int]]) -> int:
        answers = write_answers(
            engine,
            prompts,
            adapter=self.adapter or None,
            temperature=0.0,
            max_tokens=self.max_tokens,
            max_length=self.max_length,
            on_step=lambda _: self.should_stop(),
        )
        if engine.has_work:  # answers are left unfinished only where it is to stop
            raise Stopped
        return sum(map(len, answers))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the new head is let in, and why."""

    passed: bool
    reason: str


def judge(arms: Sequence[Arm]) -> Verdict:
    """Compare the arm "new" with what stands."""
    by_name = {arm.name: arm for arm in arms}
    new, plain, current = by_name[_NEW], by_name[_PLAIN], by_name.get(_CURRENT)
    speed = f"{new.tokens_per_s:.0f} tokens/s"
    if new.tokens_per_s <= plain.tokens_per_s:
        return Verdict(
            False, f"it does not beat plain decoding: {speed} to {plain.tokens_per_s:.0f}"
        )
    if current is None:
        return Verdict(True, f"it beats plain decoding: {speed} to {plain.tokens_per_s:.0f}")
    ratio = new.tokens_per_s / current.tokens_per_s
    is_better = ratio > 1 + _NOISE
    compared = "drafting without a head: "
    if new.accepted_length is not None and current.accepted_length is not None:
        is_longer = new.accepted_length > current.accepted_length
        is_better = is_better or (ratio > 1 - _NOISE and is_longer)
        compared = (
            f"{current.draft}: accepted length {new.accepted_length:.2f} to "
            f"{current.accepted_length:.2f}, "
        )
    compared += f"{speed} to {current.tokens_per_s:.0f}"
    return Verdict(is_better, f"it {'beats' if is_better else 'does not beat'} {compared}")
