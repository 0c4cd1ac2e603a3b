"""One look of the adaptation loop at one deployment: what was read, and what is to be written.

Owns the counting of recorded calls and the windows over the engine's report. Decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quickmatch.core.speculation_counts import SpeculationCounts
from quickmatch.core.speculation_settings import SpeculationSettings
from quickmatch.store.adaptation import (
    Adaptation,
    AdaptationEvent,
    EventKind,
    HeadAdaptation,
    Seen,
    Window,
)
from quickmatch.store.documents import Deployment, Model, Trace
from quickmatch.store.protocol import Filter, Store
from quickmatch.tuning.draft_data import MIN_OUTPUT_TOKENS

_ALONE = 0.9  # of the tokens: a deployment's times are then those of the traffic


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
        length = {"usage.completion_tokens": {"$gte": MIN_OUTPUT_TOKENS}}
        return {**self._calls(), "model_version": self._version_id(name), **length}

    def _version_id(self, name: str) -> str:
        return f"{name}@{self.deployment.adapters.get(name)}" if name else self.model.version_id

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

    def recent(self, name: str) -> SpeculationCounts:
        """What speculation did for a head's traffic, in its last window and the one under way.

        With the times, if hardly any other traffic shared the steps; else they say nothing of it.
        """
        own, whole = SpeculationCounts(), SpeculationCounts()
        for window in self.state.heads[name].windows:
            own, whole = own.plus(window.counts), whole.plus(window.whole)
        return whole if own.num_emitted >= _ALONE * whole.num_emitted else own

    def begin_window(self, name: str) -> None:
        """Compare a head from here on only with what comes."""
        self.state.heads[name].windows = [Window(since=self.now)]

    def observe(self, names: Sequence[str]) -> list[str]:
        """Take over the engine's newest report; return the heads whose traffic has drifted since.

        names: all heads of the deployment.
        """
        info, last = self.deployment.engine_info, self.state.report
        report = info.get("stats", {}).get("speculation")
        for name in names:
            if not self.head(name).windows:
                self.begin_window(name)
        if not report:
            return []
        seen = _read(report, info.get("pid", 0))
        since = last if seen.pid == last.pid else Seen()
        self.state.report = seen
        drifted = []
        for name in names:
            version_ids = self._drafted_for(name, names)
            if last.pid:  # else what happened before this loop, which is nobody's news
                self._add(name, seen, since, version_ids)
                if any(seen.num_drifts_of(v) > since.num_drifts_of(v) for v in version_ids):
                    drifted.append(name)
            self._turn_window(name)
        return drifted

    def _drafted_for(self, name: str, names: Sequence[str]) -> list[str]:
        """Return whose sequences are a head's traffic: version ids, "" for the base model.

        To the base model's head belong those of adapters that have no heads of their own.
        """
        if name:
            return [self._version_id(name)]
        others = [adapter for adapter in self.deployment.adapters if adapter not in names]
        return ["", *map(self._version_id, others)]

    def _add(self, name: str, seen: Seen, since: Seen, version_ids: Sequence[str]) -> None:
        window, none = self.state.heads[name].windows[-1], SpeculationCounts()
        for version_id in version_ids:
            own, before = (each.adapters.get(version_id, none) for each in (seen, since))
            window.counts = window.counts.plus(own.since(before))
        window.whole = window.whole.plus(seen.whole.since(since.whole))

    def _turn_window(self, name: str) -> None:
        head = self.state.heads[name]
        window = head.windows[-1]
        if not window.counts.num_emitted:
            return
        if self.num_calls_of(name, window.since) >= self.settings.adapt_watch_requests:
            head.windows = [window, Window(since=self.now)]

    def head(self, name: str) -> HeadAdaptation:
        """Return where the loop stands with a head; a new one begins to collect."""
        if name not in self.state.heads:
            self.state.heads = {**self.state.heads, name: HeadAdaptation(since=self.now)}
            self.record("collecting", name)
        return self.state.heads[name]


def _read(report: Mapping[str, Any], pid: int) -> Seen:
    adapters = report.get("adapters") or {}
    return Seen(
        pid=pid,
        whole=SpeculationCounts.of(report),
        adapters={name: SpeculationCounts.of(one) for name, one in adapters.items()},
        num_drifts={name: int(one.get("num_drifts", 0)) for name, one in adapters.items()},
    )
