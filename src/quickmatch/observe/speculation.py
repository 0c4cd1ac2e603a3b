"""Metrics of speculation, set at a scrape from what an engine reports.

Sums are counters, which go on when an engine is started again; rates are gauges, over the time
since the engine's start. Invariant: the drafters in labels are a closed set, and a deployment that
does not speculate (any more) has no series.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from quickmatch.core.speculation_counts import DRAFTERS, SpeculationCounts, drafter_shares
from quickmatch.observe.reported_counter import ReportedCounter

# Name, help, and the field of the engine's report.
_SUMS = (
    ("verifications", "Drafts verified: a sequence in a step counts once.", "num_verified"),
    ("plain_decodes", "Sequences in a step that decoded without a draft.", "num_plain"),
    ("emitted_tokens", "Tokens decoded, with drafts and without.", "num_emitted"),
    ("draft_seconds", "Time spent making and choosing drafts.", "draft_s"),
    ("busy_seconds", "Time of steps that only decoded, drafting included.", "busy_s"),
    ("plain_seconds", "What the same tokens would have taken without drafts.", "plain_s"),
    ("head_swaps", "Trained heads put in place of another, or of none.", "num_swaps"),
    ("drifts", "Times that acceptance fell below what was foretold.", "num_drifts"),
)
_NOW = (
    ("index_tokens", "Tokens in the suffix index.", "index_tokens"),
    ("index_bytes", "Memory of the suffix index.", "index_bytes"),
    ("last_swap_seconds", "Pause between two steps that the last swap made.", "last_swap_s"),
)
_RATES = (
    ("hit_rate", "Drafted tokens accepted, of those verified.", "hit_rate"),
    ("accepted_length", "Tokens a sequence gets from a forward; 1 is plain.", "accepted_length"),
    ("speedup_vs_plain", "Measured speed over plain decoding's, same tokens.", "speed_up"),
)


class SpeculationMetrics:
    """All metrics `quickmatch_speculation_*`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_text: str, *labels: str) -> ReportedCounter:
            full_name = f"quickmatch_speculation_{name}"
            return ReportedCounter(full_name, help_text, *labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            full_name = f"quickmatch_speculation_{name}"
            return Gauge(full_name, help_text, ("deployment", *labels), registry=registry)

        self._sums = {field: counter(name, text) for name, text, field in _SUMS}
        self._now = {field: gauge(name, text) for name, text, field in _NOW}
        self._rates = {field: gauge(name, text) for name, text, field in _RATES}
        self._proposed = counter("proposed_tokens", "Tokens drafted and verified.", "drafter")
        self._accepted = counter(
            "accepted_tokens", "Drafted tokens that the target accepted.", "drafter"
        )
        self._share = gauge("drafter_share", "Share of all accepted tokens.", "drafter")
        self._accepted_at = counter(
            "accepted_tokens_per_position", "Accepted tokens, by place in the draft.", "position"
        )

    def set(self, deployment: str, report: Mapping[str, Any] | None) -> None:
        """Take over an engine's newest report; None: it does not speculate."""
        if report is None:
            self._clear(deployment)
            return
        for field, counter in self._sums.items():
            counter.set(report.get(field, 0), deployment)
        for field, gauge in self._now.items():
            gauge.labels(deployment).set(report.get(field, 0))
        counts = SpeculationCounts.of(report)
        for field, gauge in self._rates.items():
            rate = getattr(counts, field)
            if rate is not None:
                gauge.labels(deployment).set(rate)
        self._set_drafters(deployment, report)
        for position, count in enumerate(report.get("accepted_by_position") or ()):
            self._accepted_at.set(count, deployment, str(position))

    def _set_drafters(self, deployment: str, report: Mapping[str, Any]) -> None:
        shares = drafter_shares(report)
        for drafter, source in (report.get("sources") or {}).items():
            if drafter in DRAFTERS:
                self._proposed.set(source["num_proposed"], deployment, drafter)
                self._accepted.set(source["num_accepted"], deployment, drafter)
                self._share.labels(deployment, drafter).set(shares.get(drafter, 0.0))

    def _clear(self, deployment: str) -> None:
        for counter in (*self._sums.values(), self._proposed, self._accepted, self._accepted_at):
            counter.remove(deployment)
        for gauge in (*self._now.values(), *self._rates.values()):
            with contextlib.suppress(KeyError):  # it never had a series
                gauge.remove(deployment)
        for drafter in DRAFTERS:
            with contextlib.suppress(KeyError):
                self._share.remove(deployment, drafter)
