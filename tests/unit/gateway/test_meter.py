"""One request's clock and counters."""

import pytest

from quickmatch.core.completion import Delta, Usage
from quickmatch.core.errors import Unavailable
from quickmatch.gateway.meter import Meter
from quickmatch.observe import Metrics


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"quickmatch_{name}", labels)


def test_times_and_tokens_of_a_computed_answer() -> None:
    metrics, clock = Metrics(), FakeClock()
    meter = Meter(metrics, clock=clock)
    assert value(metrics, "requests_in_flight") == 1
    meter.routed("tiny")
    meter.looked_up("miss")
    for at in (0.5, 0.6, 0.7):
        clock.now = at
        meter.saw(Delta(text="x"))
    meter.queued([None, 0.1, 0.2])
    meter.succeeded(Usage(10, 3, 4))
    clock.now = 1.0
    timings = meter.timings()
    meter.close()
    assert (timings.queue_ms, timings.ttft_ms, timings.total_ms) == (200.0, 500.0, 1000.0)
    assert value(metrics, "requests_in_flight") == 0
    assert value(metrics, "requests_total", model="tiny", status="200") == 1
    assert value(metrics, "prompt_tokens_total", model="tiny") == 10
    assert value(metrics, "cached_prompt_tokens_total", model="tiny") == 4
    assert value(metrics, "time_to_first_token_seconds_sum", model="tiny") == 0.5
    assert value(metrics, "time_per_output_token_seconds_sum", model="tiny") == pytest.approx(0.1)
    assert value(metrics, "request_latency_seconds_sum", model="tiny", cache="miss") == 1.0
    assert value(metrics, "queue_wait_seconds_sum", model="tiny") == 0.2


def test_a_hit_counts_as_a_request_but_computes_nothing() -> None:
    metrics = Metrics()
    meter = Meter(metrics)
    meter.routed("tiny")
    meter.looked_up("hit")
    meter.saw(Delta(text="x"))
    meter.succeeded(Usage(10, 3, 4))
    meter.close()
    assert value(metrics, "requests_total", model="tiny", status="200") == 1
    assert value(metrics, "completion_tokens_total", model="tiny") is None
    assert value(metrics, "time_to_first_token_seconds_count", model="tiny") is None


def test_failures_count_under_their_status() -> None:
    metrics = Metrics()
    failed, gone, unrouted = (Meter(metrics) for _ in range(3))
    failed.routed("tiny")
    failed.failed(Unavailable("down"))
    gone.routed("tiny")
    gone.hung_up()
    unrouted.failed(Unavailable("down"))
    for meter in (failed, gone, unrouted):
        meter.close()
    assert value(metrics, "request_errors_total", model="tiny", status="503") == 1
    assert value(metrics, "requests_total", model="tiny", status="499") == 1
    assert value(metrics, "requests_total", model="(none)", status="503") == 1
