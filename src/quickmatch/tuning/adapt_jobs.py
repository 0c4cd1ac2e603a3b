"""The adaptation loop's view of draft jobs: order one, ask after it, read how it came out.

Owns the translation between what the loop wants and what jobs take and tell. The loop depends on
the protocol alone.
"""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from quickmatch.core.errors import Conflict, NotFound
from quickmatch.core.settings import Home
from quickmatch.observe import audit
from quickmatch.store.documents import Deployment, Job, JobState, Model, ModelKind
from quickmatch.store.protocol import Filter, Store
from quickmatch.tuning import jobs
from quickmatch.tuning.draft_jobs import create_draft
from quickmatch.tuning.draft_settings import DraftSettings

DELETED = "draft-versions-deleted"
_NUM_KEPT = 3  # newest versions of a head


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOrder:
    """One training of a head."""

    model: str  # the base model's name
    deployment: str  # that serves it, and that the head is for
    adapter: str = ""  # whose answers are learnt, "" for the base's own
    trace_filter: Filter
    max_sequences: int  # the newest so many
    output_draft: str
    warm_start_from: str = ""  # version id of the draft to go on from


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a completed job came out."""

    draft: str  # version id of the trained head, "" where none was published
    passed: bool  # it beats what stands, on calls that it was not trained on
    message: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float | None:
        """By what share speed or accepted length grew; None where nothing drafted before."""
        pairs = [(self.figures.get(n), self.figures.get(f"{n}_before")) for n in _COMPARED]
        return max((new / old - 1.0 for new, old in pairs if new and old), default=None)


class DraftJobs(Protocol):
    """Runs draft jobs in processes of their own, at low priority."""

    def begin(self, order: DraftOrder) -> str:
        """Create and start a job; return its id. Raises QuickmatchError if it can't be."""

    def find(self, job_id: str) -> Job | None:
        """Return the job as it is now; a job whose process is gone says so."""

    def is_any_running(self) -> bool:
        """Whether a process trains a head, whoever ordered it."""

    def resume(self, job_id: str) -> None:
        """Go on from its checkpoint. Raises QuickmatchError."""

    def release(self, job_id: str) -> None:
        """The loop is done with it: it ends if it has not, and what nobody needs any more goes."""


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
        stale = {"output_model": order.output_draft, "state": JobState.CREATED.value}
        for job in self._store.find(Job, stale):  # a server died before it was started
            self._cancel(job.id)
        job = create_draft(
            self._store,
            self._home,
            model=order.model,
            adapter=order.adapter,
            trace_filter=order.trace_filter,
            output_draft=order.output_draft,
            deployment=order.deployment,
            settings=DraftSettings.parse(values),
        )
        try:
            return jobs.start(self._store, self._home, job.id).id
        except BaseException:
            self._cancel(job.id)  # or it would hold the head's name for good
            raise

    def find(self, job_id: str) -> Job | None:
        """Return the job as it is now; a job whose process is gone says so."""
        jobs.refresh(self._store)
        return self._store.get(Job, job_id)

    def is_any_running(self) -> bool:
        """Whether a process trains a head, whoever ordered it."""
        jobs.refresh(self._store)
        where = {"job_type": "draft", "state": {"$in": _RUNNING}}
        return self._store.count(Job, where) > 0

    def resume(self, job_id: str) -> None:
        """Go on from its checkpoint. Raises QuickmatchError."""
        jobs.resume(self._store, self._home, job_id)

    def release(self, job_id: str) -> None:
        """End it if it has not ended; delete what it worked on, and old versions of its head.

        One that runs keeps what it works on. The newest few versions stay, and those that a
        deployment names or may go back to.
        """
        self._cancel(job_id)  # also for the sake of what it has collected
        job = self._store.get(Job, job_id)
        if job is None:
            return
        if job.state.is_final:
            jobs.drop_work(self._home, job_id)
        draft = self._store.get(Model, job.output_model)
        if draft is not None and draft.model_kind is ModelKind.DRAFT:
            self._prune(draft, actor=f"job {job_id}")

    def _cancel(self, job_id: str) -> None:
        """Ask it to end; quiet if it has."""
        with contextlib.suppress(Conflict, NotFound):
            jobs.cancel(self._store, job_id)

    def _prune(self, draft: Model, *, actor: str) -> None:
        needed: set[str] = set()
        for deployment in self._store.find(Deployment):
            needed.update(deployment.drafts.values())
            needed.update(head.previous for head in deployment.adaptation.heads.values())
        old = [
            version
            for version in range(1, draft.version - _NUM_KEPT + 1)
            if f"{draft.id}@{version}" not in needed
            and version not in draft.elsewhere  # what was imported is not ours to delete
            and Path(draft.path_of(version)).is_dir()
        ]
        if not old:
            return
        audit.append(
            self._store, actor=actor, action=DELETED, subject=draft.id, detail={"versions": old}
        )
        for version in old:
            shutil.rmtree(draft.path_of(version), ignore_errors=True)


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
_RUNNING = [JobState.RUNNING.value, JobState.CANCELLING.value]
