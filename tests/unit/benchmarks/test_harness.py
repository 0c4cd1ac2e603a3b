"""Interleaving, the result file's form, the exit status."""

import json

import pytest
from rich.console import Console

from benchmarks.harness import Report, interleave, run_benchmark
from benchmarks.rows import against, at_least
from benchmarks.table import print_report


def _two_rows(report: Report) -> None:
    report.ceilings = {"copy_gb_per_s": 20.0}
    report.samples = {"ours": {"decode": [1.23456, 2.0]}}
    bars = {"peer": at_least(1.0, times_peer=True)}
    report.add(*against("decode", "tokens/s", [1.0], {"peer": [2.0]}, bars=bars))
    report.add(*against("decode", "tokens/s", [1.0], {}, bars=bars, missing={"peer": "no network"}))


def test_interleave_alternates_drops_warm_up_and_pairs_turns():
    turns = []

    def contender(name):
        def turn():
            turns.append(name)
            return {"rate": float(turns.count(name))}

        return turn

    samples = interleave(
        {"ours": contender("ours"), "peer": contender("peer")}, repetitions=3, warm_up=1
    )
    assert turns == ["peer", "ours", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert samples == {"ours": {"rate": [2.0, 3.0, 4.0]}, "peer": {"rate": [2.0, 3.0, 4.0]}}


def test_result_file_has_provenance_and_rows_failed_bars_included(tmp_path):
    status = run_benchmark("engine", {"seed": 7, "model": "tiny"}, _two_rows, folder=tmp_path)
    assert status == 0
    content = json.loads((tmp_path / "engine.json").read_text(encoding="utf-8"))
    found = content["provenance"]
    assert {"commit", "date", "hardware", "versions", "arguments", "duration_s"} <= set(found)
    assert found["seed"] == 7
    assert {"cpu", "cores", "memory_gib"} <= set(found["hardware"])
    measured, missing = content["rows"]
    assert {"measure", "value", "unit", "bar", "holds", "peer", "peer_value"} <= set(measured)
    assert measured["holds"] is False
    assert (missing["holds"], missing["note"]) == (None, "no network")
    assert content["samples"] == {"ours": {"decode": [1.235, 2.0]}}
    assert [p.name for p in tmp_path.iterdir()] == ["engine.json"]


def test_what_breaks_exits_with_1_and_writes_nothing(tmp_path, capsys):
    def measure(report):
        report.add(*against("decode", "tokens/s", [1.0], {}))
        raise RuntimeError("the engine refused")

    assert run_benchmark("engine", {}, measure, folder=tmp_path) == 1
    assert not list(tmp_path.iterdir())
    assert "the engine refused" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["FAILS", "no network", "0 hold, 1 fail, 1 could not be judged"])
def test_table_shows_failures_and_reasons(tmp_path, text):
    report = Report("engine", {})
    _two_rows(report)
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    with console.file:
        print_report(report, tmp_path / "engine.json", console)
        assert text in console.export_text()
