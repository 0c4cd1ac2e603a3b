"""What is said where there is no card, and how ceilings and tests are read."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import card, checks

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_one_line_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("bench-gpu: there is no CUDA device")
    assert "60 GiB free, as an H100 or H200 has; nothing was measured" in said


def test_a_small_or_old_card_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 << 30, 24 << 30))
    assert str(card.why_not(60)).startswith("20 GiB of the GPU are free; it needs")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 << 30, 80 << 30))
    assert card.why_not(60) is None
    assert card.precisions_of(("bf16", "fp8"), torch.device("cuda")) == {"bf16": "", "fp8": ""}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert "below 8.9" in card.precisions_of(("fp8",), torch.device("cuda"))["fp8"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    assert "capability is 7.0" in str(card.why_not(60))


def test_ceilings_are_rates() -> None:
    found = card.measure_ceilings(CPU, copy_bytes=1 << 20, matrix=64)
    assert found["copy_gb_per_s"] > 0.1
    assert found["matmul_bf16_tflop_per_s"] > 0


def test_the_best_of_several_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(card, "seconds", lambda *_: next(taken))
    assert card.best_s(lambda: None, CPU, tries=3) == 1.0


_REPORT = """<?xml version="1.0" encoding="utf-8"?><testsuites>
<testsuite name="pytest" errors="0" failures="0" skipped="2" tests="40"/></testsuites>"""


def test_passed_tests_are_counted_and_failed_ones_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(status: int) -> None:
        (tmp_path / "gpu-tests.xml").write_text(_REPORT, encoding="utf-8")
        done = CompletedProcess([], status, stdout="1 failed: bits differ", stderr="")
        monkeypatch.setattr(checks.subprocess, "run", lambda *_args, **_options: done)

    finish(0)
    assert checks.run_tests(tmp_path) == 38
    finish(1)
    with pytest.raises(RuntimeError, match="nothing was measured:\n1 failed: bits differ"):
        checks.run_tests(tmp_path)
