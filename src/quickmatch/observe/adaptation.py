"""Metrics of the adaptation loop, set at a scrape from what it wrote into a deployment's document.

Invariant: labels are events and phases, closed sets, and names of deployed adapters; a deployment
that does not adapt (any more) has no series.
"""

from typing import get_args

from prometheus_client import CollectorRegistry, Gauge

from quickmatch.observe.reported_counter import ReportedCounter
from quickmatch.store.adaptation import Adaptation, Phase

_EVENTS = ("training", "passed", "refused", "failed", "swapped", "kept", "rolled_back")


class AdaptationMetrics:
    """All metrics `quickmatch_adaptation_*`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = ReportedCounter(
            "quickmatch_adaptation_events",
            "What became of heads: trained, at the gate, live, rolled back.",
            "event",
            registry=registry,
        )
        self._phase = Gauge(
            "quickmatch_adaptation_phase",
            "1: where the loop stands with a head; adapter '': the base model's.",
            ("deployment", "adapter", "phase"),
            registry=registry,
        )
        self._heads: dict[str, set[str]] = {}  # that have a series, by deployment

    def set(self, deployment: str, state: Adaptation | None) -> None:
        """Take over a loop's newest state; None: the deployment does not adapt."""
        if state is None:
            self._events.remove(deployment)
        else:
            for event in _EVENTS:
                self._events.set(state.num_events.get(event, 0), deployment, event)
        heads = {} if state is None else state.heads
        for adapter in self._heads.get(deployment, set()) - heads.keys():
            for phase in get_args(Phase):
                self._phase.remove(deployment, adapter, phase)
        for adapter, head in heads.items():
            for phase in get_args(Phase):
                self._phase.labels(deployment, adapter, phase).set(phase == head.phase)
        self._heads[deployment] = set(heads)
