"""Rows of a run on a GPU: who is set beside whom, by which bar."""

from benchmarks.engine.contenders import OURS
from benchmarks.engine.running import Running
from benchmarks.gpu.figures import PEER, SDPA, missing_row, prefill_rows, rate_rows
from benchmarks.gpu.plan import USUAL
from benchmarks.rows import Row

LARGE = USUAL[1]
NAMES = [
    *(f"{kind}, B={size}" for kind in ("decode", "throughput") for size in (1, 8, 32)),
    *(f"first token, {length}-token prompt" for length in (128, 1024)),
]


def _rows(ours: float, theirs: float | None, reason: str = "") -> dict[str, Row]:
    samples = {OURS: {name: [ours, ours] for name in NAMES}}
    group = {OURS: Running(OURS)}
    if theirs is not None:
        samples[PEER] = {name: [theirs, theirs] for name in NAMES}
        group[PEER] = Running(PEER, reason=reason)
    rows = rate_rows(LARGE, "bf16", samples, group)
    return {row.measure.removeprefix("llama-8b bf16: "): row for row in rows}


def test_rates_and_times_are_judged_against_the_peer() -> None:
    rows = _rows(110.0, 100.0)
    assert set(rows) == set(NAMES)
    assert (rows["decode, B=32"].holds, rows["decode, B=32"].ratio) == (True, 1.1)
    assert rows["first token, 1024-token prompt"].holds is False


def test_a_peer_that_failed_says_why_and_judges_nothing() -> None:
    row = _rows(110.0, 100.0, "out of memory")["decode, B=1"]
    assert (row.value, row.holds, row.note) == (110.0, None, "out of memory")
    alone = _rows(110.0, None)["decode, B=1"]
    assert (alone.value, alone.peer, alone.bar) == (110.0, None, None)


def test_prefill_is_a_time_beside_sdpas() -> None:
    (row,) = prefill_rows("llama-8b", 8192, {OURS: [3.0, 3.0], SDPA: [2.0, 2.0]})
    assert (row.peer, row.ratio, row.holds) == (SDPA, 1.5, False)
    assert missing_row("llama-8b", "fp8", "too old").note == "too old"
