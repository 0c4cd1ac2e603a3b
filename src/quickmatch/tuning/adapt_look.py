"""One look of the adaptation loop at one deployment: what was read, and what is to be written.

Owns the counting of recorded calls and the windows over the engine's report. Decides nothing.
"""

from dataclasses import dataclass, field

from quickmatch.core.speculation_counts import SpeculationCounts
from quickmatch.core.speculation_settings import SpeculationSettings
from quickmatch.store.adaptation import (
    Adaptation,
    AdaptationEvent,
    EventKind,
    HeadAdaptation,
    Window,
)
from quickmatch.store.documents import Deployment, Model, Trace
from quickmatch.store.protocol import Filter, Store
from quickmatch.tuning.draft_data import MIN_OUTPUT_TOKENS


@dataclass(slots=True)
class Look:
    """Made anew each time; `state` is a copy that the loop writes back."""

    store: Store
    now: float
    deployment: Deployment
    model: Model  # that it serves
    settings: SpeculationSettings
    state: Adaptation
    drafts: dict[str, str] = field(default_factory=dict)  # to be written, "": none shall stand

    def record(
        self,
        event: EventKind,
        name: str,
        *,
        draft: str = "",
        job: str = "",
        text: str = "",
        figures: dict[str, float] | None = None,
    ) -> None:
        """Add to the history."""
        entry = AdaptationEvent(
            at=self.now, event=event, head=name, draft=draft, job=job, text=text,
            figures=figures or {},
        )  # fmt: skip
        self.state.record(entry)

    def want_draft(self, name: str, draft: str) -> None:
        """Put a head live, or with "" take it off, when the look is written."""
        self.drafts[name] = draft

    def calls_of(self, name: str) -> Filter:
        """Return the filter of recorded calls that a head can learn from.

        What the exact cache answered the model did not write again; in an answer of one token
        there is nothing to draft. The job that trains leaves out what is equal besides.
        """
        version = self.deployment.adapters.get(name)
        version_id = f"{name}@{version}" if name else self.model.version_id
        length = {"usage.completion_tokens": {"$gte": MIN_OUTPUT_TOKENS}}
        return {**self._calls(), "model_version": version_id, **length}

    def num_calls_of(self, name: str, since: float) -> int:
        """Return how many of them are newer."""
        return self.store.count(Trace, {**self.calls_of(name), "created_at": {"$gt": since}})

    def num_calls(self, since: float) -> int:
        """Return how many calls of the deployment were recorded since."""
        return self.store.count(Trace, {**self._calls(), "created_at": {"$gt": since}})

    def has_calls(self, since: float) -> bool:
        """Whether any call was recorded since, also such as a head cannot learn from."""
        where = {"deployment": self.deployment.id, "created_at": {"$gt": since}}
        return next(self.store.find(Trace, where, limit=1), None) is not None

    def _calls(self) -> Filter:
        return {"deployment": self.deployment.id, "status": 200, "cache": {"$ne": "hit"}}

    @property
    def recent(self) -> SpeculationCounts:
        """What speculation did in the last window and the one under way."""
        total = SpeculationCounts()
        for window in self.state.windows:
            total = total.plus(window.counts)
        return total

    def begin_window(self) -> None:
        """Compare from here on only with what comes."""
        self.state.windows = [Window(since=self.now)]

    def observe(self) -> int:
        """Take over the engine's newest report; return how many drifts it saw since the last."""
        info, state = self.deployment.engine_info, self.state
        report = info.get("stats", {}).get("speculation")
        if not state.windows:
            self.begin_window()
        if not report:
            return 0
        counts, num_drifts = SpeculationCounts.of(report), int(report.get("num_drifts", 0))
        is_first = state.engine_pid == 0  # what happened before this loop is nobody's news
        is_same = state.engine_pid == info.get("pid", 0)
        window = state.windows[-1]
        if not is_first:
            window.counts = window.counts.plus(counts.since(state.seen) if is_same else counts)
        num_new = num_drifts - state.num_drifts if is_same else num_drifts
        state.engine_pid, state.seen = info.get("pid", 0), counts
        state.num_drifts = num_drifts
        if self.num_calls(window.since) >= self.settings.adapt_watch_requests:
            state.windows = [window, Window(since=self.now)]
        return 0 if is_first else max(0, num_new)

    def head(self, name: str) -> HeadAdaptation:
        """Return where the loop stands with a head; a new one begins to collect."""
        if name not in self.state.heads:
            self.state.heads = {**self.state.heads, name: HeadAdaptation(since=self.now)}
            self.record("collecting", name)
        return self.state.heads[name]
