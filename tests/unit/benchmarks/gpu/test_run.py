"""A run from end to end, where the card is a CPU and the shape tiny: every row comes out."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.engine.plan import Batch
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import card
from benchmarks.gpu.plan import USUAL, GpuPlan
from benchmarks.harness import Report
from tests.unit.benchmarks.gpu.test_peer import TINY


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_every_row_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(
        USUAL[0],
        shape=TINY,
        repetitions=1,
        warm_up=0,
        batches=(Batch(1, 8, 4), Batch(4, 8, 4)),
        prompt_lens=(16,),
        max_len=128,
        num_steps=2,
    )
    small = {"copy_bytes": 1 << 20, "matrix": 64}
    measure = card.measure_ceilings
    monkeypatch.setattr(card, "measure_ceilings", lambda device: measure(device, **small))
    make = bench.make_model
    monkeypatch.setattr(bench, "make_model", lambda *a, **k: make(*a, **k, root=tmp_path))
    plan = GpuPlan(
        shapes=(shape,),
        precisions=("bf16", "int8", "fp8"),
        device="cpu",
        kv_bytes=1 << 24,
        prefill_lens=(40,),
        has_peer=False,
        is_checked=False,
    )
    report = Report("gpu", {})
    bench.Bench(report, plan, tmp_path).measure()
    rows = {row.measure: row for row in report.rows}
    assert rows["tiny bf16: attention of 40 tokens, one layer"].peer == "sdpa"
    assert rows["tiny bf16: weights read at B=1 ÷ copy bandwidth"].bar == "≥ 0.8"
    for precision in ("bf16", "int8"):
        assert (rows[f"tiny {precision}: decode, B=4"].value or 0) > 0
    assert rows["tiny fp8"].note == "the device is cpu"
    assert rows["tiny bf16: 32 of 100 adapters in a batch ÷ base alone, B=32"].value
    assert (tmp_path / "gpu.json").is_file()
