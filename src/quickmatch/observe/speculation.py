"""Gauges of speculation, set at a scrape from what an engine reports.

Sums are since the engine's start, as its other gauges are, and rates are over that time; for a
recent rate divide the differences of two scrapes. Invariant: the drafters in labels are a closed
set, and a deployment that does not speculate (any more) has no series.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from quickmatch.core.speculation_counts import DRAFTERS, SpeculationCounts, drafter_shares

# Name, help, and the field of the engine's report.
_SUMS = (
    ("verifications", "Drafts verified: a sequence in a step counts once.", "num_verified"),
    ("plain_decodes", "Sequences in a step that decoded without a draft.", "num_plain"),
    ("emitted_tokens", "Tokens decoded, with drafts and without.", "num_emitted"),
    ("draft_seconds", "Time spent making and choosing drafts.", "draft_s"),
    ("busy_seconds", "Time of steps that only decoded, drafting included.", "busy_s"),
    ("plain_seconds", "What the same tokens would have taken without drafts.", "plain_s"),
    ("index_tokens", "Tokens in the suffix index.", "index_tokens"),
    ("index_bytes", "Memory of the suffix index.", "index_bytes"),
    ("head_swaps", "Trained heads put in place of another, or of none.", "num_swaps"),
    ("last_swap_seconds", "Pause between two steps that the last swap made.", "last_swap_s"),
    ("drifts", "Times that acceptance fell below what was foretold.", "num_drifts"),
)
_RATES = (
    ("hit_rate", "Drafted tokens accepted, of those verified.", "hit_rate"),
    ("accepted_length", "Tokens a sequence gets from a forward; 1 is plain.", "accepted_length"),
    ("speedup_vs_plain", "Measured speed over plain decoding's, same tokens.", "speed_up"),
)
_BY_DRAFTER = (
    ("proposed_tokens", "Tokens drafted and verified."),
    ("accepted_tokens", "Drafted tokens that the target accepted."),
    ("drafter_share", "Share of all accepted tokens."),
)


class SpeculationMetrics:
    """All gauges `quickmatch_speculation_*`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            full_name = f"quickmatch_speculation_{name}"
            return Gauge(full_name, help_text, ("deployment", *labels), registry=registry)

        self._sums = {field: gauge(name, text) for name, text, field in _SUMS}
        self._rates = {field: gauge(name, text) for name, text, field in _RATES}
        self._by_drafter = {name: gauge(name, text, "drafter") for name, text in _BY_DRAFTER}

    def set(self, deployment: str, report: Mapping[str, Any] | None) -> None:
        """Take over an engine's newest report; None: it does not speculate."""
        if report is None:
            self._clear(deployment)
            return
        for field, gauge in self._sums.items():
            gauge.labels(deployment).set(report.get(field, 0))
        counts = SpeculationCounts.of(report)
        for field, gauge in self._rates.items():
            rate = getattr(counts, field)
            if rate is not None:
                gauge.labels(deployment).set(rate)
        shares = drafter_shares(report)
        for drafter, source in (report.get("sources") or {}).items():
            if drafter in DRAFTERS:
                values = source["num_proposed"], source["num_accepted"], shares.get(drafter, 0.0)
                for gauge, value in zip(self._by_drafter.values(), values, strict=True):
                    gauge.labels(deployment, drafter).set(value)

    def _clear(self, deployment: str) -> None:
        for gauge in (*self._sums.values(), *self._rates.values()):
            with contextlib.suppress(KeyError):  # it never had a series
                gauge.remove(deployment)
        for gauge in self._by_drafter.values():
            for drafter in DRAFTERS:
                with contextlib.suppress(KeyError):
                    gauge.remove(deployment, drafter)
