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
