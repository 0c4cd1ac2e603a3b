"""Metrics: names with units, a registry of each server's own."""

import re

from quickmatch.observe import Metrics
from quickmatch.store.adaptation import (
    MAX_EVENTS,
    Adaptation,
    AdaptationEvent,
    HeadAdaptation,
)


def test_names_have_our_prefix_and_every_metric_a_help_text() -> None:
    text = Metrics().render().decode()
    names = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert len(names) > 15
    for name, kind in names:
        assert name.startswith("quickmatch_")
        assert kind != "histogram" or name.endswith("_seconds")
    assert len(re.findall(r"^# HELP \S+ \S+", text, re.MULTILINE)) == len(names)


def test_two_servers_do_not_share_numbers() -> None:
    one, two = Metrics(), Metrics()
    one.requests.labels("tiny", "200").inc()
    assert 'status="200"} 1.0' in one.render().decode()
    assert 'status="200"' not in two.render().decode()


def test_engine_gauges_keep_what_a_report_lacks() -> None:
    metrics = Metrics()
    metrics.set_engine("d", {"num_running": 3, "num_blocks": 10}, num_adapters=2)
    metrics.set_engine("d", {"num_running": 4}, num_adapters=1)
    text = metrics.render().decode()
    assert 'quickmatch_engine_running_requests{deployment="d"} 4.0' in text
    assert 'quickmatch_kv_blocks{deployment="d"} 10.0' in text
    assert 'quickmatch_adapters_loaded{deployment="d"} 1.0' in text


def test_a_deployment_that_is_gone_takes_its_series_along() -> None:
    metrics = Metrics()
    for name in ("gone", "stays"):
        report = {"num_running": 3, "num_steps": 5, "speculation": REPORT}
        metrics.set_engine(name, report, num_adapters=2)
        metrics.adaptation.set(name, Adaptation(heads={"": HeadAdaptation(since=0.0)}))
    metrics.keep_engines(["stays", "new"])
    text = metrics.render().decode()
    assert '"gone"' not in text
    assert text.count('"stays"') > 30
    metrics.set_engine("gone", {"num_steps": 2}, num_adapters=0)  # it is served again
    again = metrics.render().decode()
    assert 'quickmatch_engine_steps_total{deployment="gone"} 2.0' in again
    assert 'quickmatch_engine_running_requests{deployment="gone"}' not in again


REPORT = {
    "num_verified": 30, "num_plain": 10, "num_proposed": 200, "num_accepted": 160,
    "num_emitted": 200, "busy_s": 2.0, "plain_s": 6.0, "draft_s": 0.1, "index_tokens": 7,
    "num_swaps": 1, "last_swap_s": 0.004, "num_drifts": 2, "accepted_by_position": [90, 70],
    "sources": {"head": {"num_proposed": 150, "num_accepted": 120},
                "suffix_local": {"num_proposed": 50, "num_accepted": 40},
                "oracle\n": {"num_proposed": 1, "num_accepted": 1}},
}  # fmt: skip


def speculation_lines(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("quickmatch_speculation_")]
    return {name.removeprefix("quickmatch_speculation_"): float(value) for name, value in pairs}


def test_speculation_has_its_sums_rates_and_drafters() -> None:
    metrics = Metrics()
    metrics.set_engine("d", {"speculation": REPORT}, num_adapters=0)
    lines = speculation_lines(metrics)
    expected = {
        'hit_rate{deployment="d"}': 0.8,
        'accepted_length{deployment="d"}': 5.0,
        'speedup_vs_plain{deployment="d"}': 3.0,
        'draft_seconds_total{deployment="d"}': 0.1,
        'last_swap_seconds{deployment="d"}': 0.004,
        'drifts_total{deployment="d"}': 2.0,
        'index_tokens{deployment="d"}': 7.0,
        'proposed_tokens_total{deployment="d",drafter="head"}': 150.0,
        'accepted_tokens_total{deployment="d",drafter="suffix_local"}': 40.0,
        'accepted_tokens_per_position_total{deployment="d",position="0"}': 90.0,
        'accepted_tokens_per_position_total{deployment="d",position="1"}': 70.0,
        'drafter_share{deployment="d",drafter="head"}': 0.75,
    }
    assert {name: lines.get(name) for name in expected} == expected
    assert not any("oracle" in name for name in lines)


def test_sums_go_on_when_an_engine_is_started_again() -> None:
    # Guards: a difference of two scrapes that is negative, or as large as all that was before.
    metrics = Metrics()
    for num_steps, num_emitted in ((10, 200), (15, 260), (2, 30), (4, 50)):
        report = {**REPORT, "num_emitted": num_emitted}
        metrics.set_engine("d", {"num_steps": num_steps, "speculation": report}, num_adapters=0)
    text = metrics.render().decode()
    assert 'quickmatch_engine_steps_total{deployment="d"} 19.0' in text
    assert 'quickmatch_speculation_emitted_tokens_total{deployment="d"} 310.0' in text


def test_what_is_a_sum_is_a_counter() -> None:
    metrics = Metrics()
    metrics.set_engine("d", {"speculation": REPORT}, num_adapters=0)
    gauges = re.findall(r"^# TYPE quickmatch_(\S+) gauge$", metrics.render().decode(), re.MULTILINE)
    sums = [name for name in gauges if re.search(r"tokens|steps|preempt|swaps|drifts", name)]
    assert [name for name in sums if not name.endswith("_created")] == ["speculation_index_tokens"]


def adaptation_lines(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("quickmatch_adaptation_")]
    pairs = [(name, value) for name, value in pairs if "_created" not in name]
    return {name.removeprefix("quickmatch_adaptation_"): float(value) for name, value in pairs}


def test_the_adaptation_loop_can_be_alerted_on() -> None:
    metrics, state = Metrics(), Adaptation()
    for event, draft in (("training", ""), ("gated", ""), ("gated", "h@2"), ("rolled_back", "h@2")):
        state.record(AdaptationEvent(at=1.0, event=event, draft=draft))
    state.heads = {
        "": HeadAdaptation(since=0.0, phase="training"),
        "red": HeadAdaptation(since=0.0),
    }
    metrics.adaptation.set("d", state)
    lines = adaptation_lines(metrics)
    events = {n.split('"')[-2]: v for n, v in lines.items() if n.startswith("events_total")}
    assert events == {
        "training": 1, "refused": 1, "passed": 1, "rolled_back": 1, "failed": 0, "swapped": 0,
        "kept": 0,
    }  # fmt: skip
    assert {n for n, v in lines.items() if n.startswith("phase") and v == 1.0} == {
        'phase{adapter="",deployment="d",phase="training"}',
        'phase{adapter="red",deployment="d",phase="collecting"}',
    }
    del state.heads["red"]
    metrics.adaptation.set("d", state)
    assert not any("red" in name for name in adaptation_lines(metrics))
    metrics.adaptation.set("d", None)
    assert adaptation_lines(metrics) == {}


def test_events_stay_counted_when_the_oldest_go() -> None:
    state = Adaptation()
    for _ in range(MAX_EVENTS + 10):
        state.record(AdaptationEvent(at=1.0, event="training"))
    assert (len(state.events), state.num_events) == (MAX_EVENTS, {"training": MAX_EVENTS + 10})


def test_a_deployment_that_stops_speculating_loses_its_series() -> None:
    metrics = Metrics()
    for name in ("d", "e"):
        metrics.set_engine(name, {"speculation": REPORT}, num_adapters=0)
    metrics.set_engine("d", {"num_running": 1}, num_adapters=0)  # no word on speculation
    assert any('"d"' in name for name in speculation_lines(metrics))
    metrics.set_engine("d", {"speculation": None}, num_adapters=0)
    names = speculation_lines(metrics)
    assert not any('"d"' in name for name in names)
    assert any('"e"' in name for name in names)
    metrics.set_engine("f", {"speculation": None}, num_adapters=0)  # never had any
