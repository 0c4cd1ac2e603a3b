"""Prometheus metrics of one server: of calls, engines, speculation and its adaptation.

Owns a registry of its own, so that two servers in one process (or two tests) never meet. Does not
know where numbers come from: the gateway counts calls, the fleet hands in what engines report.
Invariant: names are `quickmatch_*` with the unit at the end; labels hold only names from a closed
set (models served, statuses, deployments), never text from a caller, so that no caller can grow
the number of series.
"""

import contextlib
from collections.abc import Collection, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from quickmatch.observe.adaptation import AdaptationMetrics
from quickmatch.observe.reported_counter import ReportedCounter
from quickmatch.observe.speculation import SpeculationMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TPOT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_TOTAL_S = (0.002, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

# Gauges of an engine: name, help, and the field of its report.
_ENGINE_GAUGES = (
    ("engine_running_requests", "Sequences in the current step.", "num_running"),
    ("engine_waiting_requests", "Sequences in the engine's queue.", "num_waiting"),
    ("kv_blocks_used", "KV blocks that hold something.", "num_blocks_used"),
    ("kv_blocks", "KV blocks in all.", "num_blocks"),
    ("engine_step_seconds", "Mean step over the last period.", "step_s"),
    ("engine_resident_memory_bytes", "Resident memory of the engine process.", "rss_bytes"),
    ("engine_memory_low", "1: memory runs out, and new requests are refused.", "is_memory_low"),
)
# Counters of an engine, likewise.
_ENGINE_COUNTERS = (
    ("engine_preemptions", "Sequences preempted.", "num_preempted"),
    ("engine_prefill_tokens", "Prompt tokens computed.", "num_prefill_tokens"),
    ("engine_decode_tokens", "Tokens decoded.", "num_decode_tokens"),
    ("engine_prefix_hit_tokens", "Prompt tokens reused.", "num_prefix_hit_tokens"),
    ("engine_kv_evicted_tokens", "KV given up, tokens.", "num_evicted_tokens"),
    ("engine_steps", "Steps.", "num_steps"),
)


class Metrics:
    """Every metric of one server, as attributes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Calls answered, by status; 499: the caller hung up.", "model", "status"
        )
        self.errors = self._counter("request_errors", "Calls that failed.", "model", "status")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens.", "model")
        self.cached_prompt_tokens = self._counter(
            "cached_prompt_tokens", "Prompt tokens found in the prefix cache.", "model"
        )
        self.completion_tokens = self._counter("completion_tokens", "Tokens generated.", "model")
        self.exact_cache_hits = self._counter("exact_cache_hits", "Exact-cache hits.", "model")
        self.exact_cache_misses = self._counter(
            "exact_cache_misses", "Exact-cache misses.", "model"
        )
        self.engine_restarts = self._counter(
            "engine_restarts", "Times an engine died and was started again.", "deployment"
        )
        self.traces_dropped = self._counter(
            "traces_dropped", "Traces lost because the store was slower than the traffic."
        )
        self.ttft_s = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _TTFT_S, "model"
        )
        self.tpot_s = self._histogram(
            "time_per_output_token_seconds", "Mean gap between tokens after the first.", _TPOT_S,
            "model",
        )  # fmt: skip
        self.latency_s = self._histogram(
            "request_latency_seconds", "Arrival to last byte.", _TOTAL_S, "model", "cache"
        )
        self.queue_s = self._histogram(
            "queue_wait_seconds", "Arrival at the engine to first scheduled.", _TTFT_S, "model"
        )
        self.in_flight = Gauge(
            "quickmatch_requests_in_flight", "Calls being answered.", registry=self.registry
        )
        self.adapters_loaded = self._gauge("adapters_loaded", "Adapters that can be asked for.")
        self._gauges = {
            field: self._gauge(name, help_text) for name, help_text, field in _ENGINE_GAUGES
        }
        self._counters = {
            field: ReportedCounter(f"quickmatch_{name}", help_text, registry=self.registry)
            for name, help_text, field in _ENGINE_COUNTERS
        }
        self._reported: set[str] = set()  # deployments with series
        self.speculation = SpeculationMetrics(self.registry)
        self.adaptation = AdaptationMetrics(self.registry)

    def set_engine(self, deployment: str, stats: Mapping[str, Any], *, num_adapters: int) -> None:
        """Take over one engine's newest report; fields it lacks stay as they were."""
        self._reported.add(deployment)
        self.adapters_loaded.labels(deployment).set(num_adapters)
        for field, gauge in self._gauges.items():
            if field in stats:
                gauge.labels(deployment).set(stats[field])
        for field, counter in self._counters.items():
            if field in stats:
                counter.set(stats[field], deployment)
        if "speculation" in stats:
            self.speculation.set(deployment, stats["speculation"])

    def keep_engines(self, deployments: Collection[str]) -> None:
        """Drop the series of engines and their adaptation that are of no deployment of these."""
        for gone in self._reported.difference(deployments):
            for gauge in (self.adapters_loaded, *self._gauges.values()):
                with contextlib.suppress(KeyError):  # it never had a series
                    gauge.remove(gone)
            for counter in self._counters.values():
                counter.remove(gone)
            self.speculation.set(gone, None)
            self.adaptation.set(gone, None)
        self._reported.intersection_update(deployments)

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"quickmatch_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"quickmatch_{name}", help_text, ("deployment",), registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"quickmatch_{name}", help_text, labels, buckets=buckets, registry=self.registry
        )
