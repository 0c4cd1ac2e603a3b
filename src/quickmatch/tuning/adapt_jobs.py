"""The adaptation loop's view of draft jobs: order one, ask after it, read how it came out.

Owns the translation between what the loop wants and what jobs take and tell. The loop depends on
the protocol alone.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from quickmatch.core.errors import Conflict, NotFound
from quickmatch.core.settings import Home
from quickmatch.store.documents import Job
from quickmatch.store.protocol import Filter, Store
from quickmatch.tuning import jobs
from quickmatch.tuning.draft_jobs import create_draft
from quickmatch.tuning.draft_settings import DraftSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOrder:
    """One training of a head."""

    model: str  # the base model's name
    adapter: str = ""  # whose answers are learnt, "" for the base's own
    trace_filter: Filter
    max_sequences: int  # the newest so many
    output_draft: str
    warm_start_from: str = ""  # name of the draft to go on from, in its newest version


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a completed job came out."""

    draft: str  # version id of the trained head, "" where none was published
    passed: bool  # it beats what stands, on calls that it was not trained on
    message: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float | None:
        """By what share speed or accepted length grew; None where no head stood before."""
        pairs = [(self.figures.get(n), self.figures.get(f"{n}_before")) for n in _COMPARED]
        return max((new / old - 1.0 for new, old in pairs if new and old), default=None)


class DraftJobs(Protocol):
    """Runs draft jobs in processes of their own, at low priority."""

    def begin(self, order: DraftOrder) -> str:
        """Create and start a job; return its id. Raises QuickmatchError if it can't be."""

    def find(self, job_id: str) -> Job | None:
        """Return the job as it is now; a job whose process is gone says so."""

    def resume(self, job_id: str) -> None:
        """Go on from its checkpoint. Raises QuickmatchError."""

    def cancel(self, job_id: str) -> None:
        """Ask it to end; quiet if it has."""


class StoredDraftJobs:
    """Jobs as the command line's verbs know them."""

    def __init__(self, store: Store, home: Home) -> None:
        self._store = store
        self._home = home

    def begin(self, order: DraftOrder) -> str:
        """Create and start a job; return its id. Raises QuickmatchError if it can't be."""
        values: dict[str, Any] = {"max_sequences": order.max_sequences}
        if order.warm_start_from:
            values["warm_start_from"] = order.warm_start_from
        job = create_draft(
            self._store,
            self._home,
            model=order.model,
            adapter=order.adapter,
            trace_filter=order.trace_filter,
            output_draft=order.output_draft,
            settings=DraftSettings.parse(values),
        )
        return jobs.start(self._store, self._home, job.id).id

    def find(self, job_id: str) -> Job | None:
        """Return the job as it is now; a job whose process is gone says so."""
        jobs.refresh(self._store)
        return self._store.get(Job, job_id)

    def resume(self, job_id: str) -> None:
        """Go on from its checkpoint. Raises QuickmatchError."""
        jobs.resume(self._store, self._home, job_id)

    def cancel(self, job_id: str) -> None:
        """Ask it to end; quiet if it has."""
        with contextlib.suppress(Conflict, NotFound):
            jobs.cancel(self._store, job_id)


def outcome_of(job: Job) -> Outcome:
    """Read a completed job's metrics: its gate's arms "new", "current" (perhaps) and "plain"."""
    metrics = job.metrics
    gate = metrics.get("gate") or {}
    figures = {}
    for arm, suffix in (("new", ""), ("current", "_before"), ("plain", "_plain")):
        for name in _COMPARED:
            value = gate.get(arm, {}).get(name)
            if value is not None:
                figures[name + suffix] = float(value)
    if metrics.get("train_s") is not None:
        figures["train_s"] = float(metrics["train_s"])
    draft, message = metrics.get("draft_version") or "", metrics.get("message") or ""
    return Outcome(draft, bool(metrics.get("passed")), message, figures)


_COMPARED = ("tokens_per_s", "accepted_length")
