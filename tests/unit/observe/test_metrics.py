"""Metrics: names with units, a registry of each server's own."""

import re

from quickmatch.observe import Metrics


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


REPORT = {
    "num_verified": 30, "num_plain": 10, "num_proposed": 200, "num_accepted": 160,
    "num_emitted": 200, "busy_s": 2.0, "plain_s": 6.0, "draft_s": 0.1, "index_tokens": 7,
    "num_swaps": 1, "last_swap_s": 0.004, "num_drifts": 2,
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
        'draft_seconds{deployment="d"}': 0.1,
        'last_swap_seconds{deployment="d"}': 0.004,
        'drifts{deployment="d"}': 2.0,
        'proposed_tokens{deployment="d",drafter="head"}': 150.0,
        'accepted_tokens{deployment="d",drafter="suffix_local"}': 40.0,
        'drafter_share{deployment="d",drafter="head"}': 0.75,
    }
    assert {name: lines.get(name) for name in expected} == expected
    assert not any("oracle" in name for name in lines)


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
