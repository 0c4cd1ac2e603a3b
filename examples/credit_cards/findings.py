"""What a run found, in one place: the report, the table and report.json are views of this."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from examples.credit_cards.phases import Phase, Point
from examples.credit_cards.plan import Plan
from examples.credit_cards.rating import RatingModel
from examples.credit_cards.screen import Span
from examples.credit_cards.switch import Switch
from examples.credit_cards.teach import Lessons
from quickmatch.store.documents import Job
from quickmatch.tuning.metrics import Score

Json = dict[str, Any]
WHO = ("base", "tuned", "teacher")


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
class Speculation:
    """The model that was measured above, drafted for. Times in seconds."""

    phases: list[Phase]  # "plain" first
    course: list[Point]  # hit rate and speed over all requests of the stage
    job: Job  # that trained the head
    swap_s: float  # pause of the engine when the head came
    num_during_swap: int  # requests of other users meanwhile
    num_failed: int  # of them
    num_compared: int  # prompts of the plain phase, asked again with the head
    num_same: int  # of them: the same text

    def speed_up(self, phase: Phase) -> float:
        """Tokens a second that one caller gets, against plain decoding."""
        return phase.tokens_per_s / self.phases[0].tokens_per_s


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
    speculation: Speculation
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
            "speculation": self._speculation_json(),
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
            "duration_s": _duration_s(job),
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "metrics": job.metrics,
        }

    def _speculation_json(self) -> Json:
        found = self.speculation
        return {
            **{phase.name: _phase_json(phase, found.speed_up(phase)) for phase in found.phases},
            "swap_s": found.swap_s,
            "num_during_swap": found.num_during_swap,
            "num_failed": found.num_failed,
            "same_text_share": found.num_same / found.num_compared,
            "num_compared": found.num_compared,
            "job": {
                "id": found.job.id,
                "settings": found.job.settings,
                "duration_s": _duration_s(found.job),
                "metrics": found.job.metrics,
            },
            "course": [asdict(point) for point in found.course],
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


def _measure_json(measure: Measure) -> Json:
    values: Json = {who: estimate.value for who, estimate in measure.by.items()}
    return values | {"interval_95": {w: [e.low, e.high] for w, e in measure.by.items()}}


def _phase_json(phase: Phase, speed_up: float) -> Json:
    return {
        "num_requests": len(phase.answers),
        "latency_ms": _milliseconds([answer.total_s for answer in phase.answers]),
        "ttft_ms": _milliseconds([answer.ttft_s for answer in phase.answers]),
        "tokens_per_s": phase.tokens_per_s,
        "speed_up": speed_up,
        "hit_rate": phase.counts.hit_rate,
        "accepted_length": phase.counts.accepted_length,
        "speed_up_by_the_engine": phase.counts.speed_up,
        "head_share": phase.head_share,
        "index_tokens": phase.index_tokens,
    }


def _duration_s(job: Job) -> float:
    return (job.finished_at or 0.0) - (job.started_at or 0.0)


def _milliseconds(values_s: Sequence[float]) -> Json:
    return {f"p{p}": 1000 * percentile(values_s, p) for p in (50, 95)}
