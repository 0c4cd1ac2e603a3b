"""What a run found, in one place: the report, the table and report.json are views of this."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from examples.credit_cards.plan import Plan
from examples.credit_cards.rating import RatingModel
from examples.credit_cards.screen import Span
from examples.credit_cards.switch import Switch
from examples.credit_cards.teach import Lessons
from quickmatch.tuning.metrics import Score

Json = dict[str, Any]
WHO = ("base", "tuned", "teacher")
PACKAGES = ("quickmatch", "torch", "transformers", "peft", "scikit-learn", "numpy", "openai")


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of quality, for each of WHO that it could be taken of."""

    key: str
    label: str
    unit: str  # "%" for shares, "" for plain numbers
    by: dict[str, Score]  # with its 95 % interval


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out applicant and what each model said. `errors` belong to the tuned answer."""

    prompt: str
    answers: dict[str, str]
    errors: list[str]


@dataclass(frozen=True, slots=True)
class Quality:
    """Held-out evaluation."""

    num_rows: int
    measures: list[Measure]
    samples: list[Sample]
    num_openings: dict[str, int]  # different ways to begin, of each of WHO
    tokens_per_s: float  # of the tuned model, so many requests at a time
    concurrency: int


@dataclass(frozen=True, slots=True)
class Speed:
    """One caller, one request at a time. Seconds, a value a request."""

    first_s: list[float]
    ttft_s: list[float]
    cached_s: list[float]
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, as the engine tells them."""

    engine_rss: int
    model: int
    kv_cache: int
    adapter: int


@dataclass(frozen=True, slots=True)
class Findings:
    """All of it."""

    plan: Plan
    rating_model: RatingModel
    lessons: Lessons
    switch: Switch
    quality: Quality
    speed: Speed
    memory: Memory
    timeline: list[Span]
    wall_s: float
    provenance: Json

    def as_json(self) -> Json:
        """Return report.json."""
        speed = self.speed
        return {
            **{m.key: _measure_json(m) for m in self.quality.measures},
            "adapter_live_s": self.switch.live_s,
            "cached_p50_ms": 1000 * percentile(speed.cached_s, 50),
            "latency_ms": _milliseconds(speed.first_s),
            "ttft_ms": _milliseconds(speed.ttft_s),
            "tokens_per_s": self.quality.tokens_per_s,
            "tokens_per_s_one_caller": speed.tokens_per_s,
            "wall_s": self.wall_s,
            "num_openings": self.quality.num_openings,
            "num_held_out": self.quality.num_rows,
            "concurrency": self.quality.concurrency,
            "adapter_bytes": self.memory.adapter,
            "memory_bytes": {
                "engine": self.memory.engine_rss,
                "model": self.memory.model,
                "kv_cache": self.memory.kv_cache,
            },
            "switch": self._switch_json(),
            "training": self._training_json(),
            "teacher": self._teacher_json(),
            "rating_model": self._rating_json(),
            "timeline": [
                {"stage": s.name, "start_s": s.start_s, "end_s": s.end_s} for s in self.timeline
            ],
            "provenance": self.provenance,
        }

    def _switch_json(self) -> Json:
        return {
            "load_s": self.switch.load_s,
            "num_requests": len(self.switch.answers) + len(self.switch.failures),
            "num_in_flight": self.switch.num_in_flight,
            "num_failed": len(self.switch.failures),
        }

    def _training_json(self) -> Json:
        job = self.switch.job
        losses = [step.loss for step in self.switch.steps if step.loss is not None]
        return {
            "job": job.id,
            "settings": job.settings,
            "num_steps": job.progress.step,
            "duration_s": (job.finished_at or 0.0) - (job.started_at or 0.0),
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "metrics": job.metrics,
        }

    def _teacher_json(self) -> Json:
        return {
            "name": self.lessons.teacher,
            "num_answers": len(self.lessons.answers),
            "num_traces": self.lessons.num_traces,
            "num_cache_entries": self.lessons.num_cached,
            "wall_s": self.lessons.wall_s,
            "latency_ms": _milliseconds([answer.total_s for answer in self.lessons.answers]),
        }

    def _rating_json(self) -> Json:
        return {
            "accuracy": self.rating_model.accuracy,
            "num_openings": self.quality.num_openings,
            "num_held_out": self.rating_model.num_held_out,
            "importance": {i.field.key: i.drop for i in self.rating_model.importances},
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def provenance(plan: Plan) -> Json:
    """Say what ran where, so that figures of two runs can be compared."""
    return {
        "arguments": plan.as_json(),
        "argv": sys.argv[1:],
        "seed": plan.seed,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_at_start": os.getloadavg()[0],
    }


def _measure_json(measure: Measure) -> Json:
    values: Json = {who: estimate.value for who, estimate in measure.by.items()}
    return values | {"interval_95": {w: [e.low, e.high] for w, e in measure.by.items()}}


def _milliseconds(values_s: Sequence[float]) -> Json:
    return {f"p{p}": 1000 * percentile(values_s, p) for p in (50, 95)}


def _commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
