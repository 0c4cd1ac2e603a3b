"""Rows: who is set beside whom, by which bar, and what is said of what was left out."""

from benchmarks.engine.contenders import OURS
from benchmarks.engine.figures import bandwidth_row, memory_row, own_rows, peer_rows
from benchmarks.engine.plan import USUAL, without_long_prompt
from benchmarks.engine.running import Running
from benchmarks.engine.turns import long_prompt
from benchmarks.rows import Row

SMALL, LARGE = USUAL


def _rows(value: float, theirs: float, **peers: Running) -> dict[tuple[str, str | None], Row]:
    names = [
        *(f"{kind}, B={size}" for kind in ("decode", "throughput") for size in (1, 8, 32)),
        *(f"first token, {length}-token prompt" for length in (128, 1024)),
    ]
    group = {OURS: Running(OURS), **peers}
    samples = {OURS: {name: [value, value] for name in names}}
    for one in peers.values():
        left_out = one.notes.keys()
        samples[one.name] = {name: [theirs, theirs] for name in names if name not in left_out}
    rows = peer_rows(without_long_prompt(LARGE), "int4", samples, group)
    return {(row.measure.removeprefix("qwen3-600m int4: "), row.peer): row for row in rows}


def test_rates_have_to_be_higher_and_times_lower() -> None:
    rows = _rows(110.0, 100.0, peer=Running("peer"))
    judged = {measure: (row.bar, row.holds) for (measure, _), row in rows.items()}
    assert judged["decode, B=1"] == ("≥ 1 × peer", True)
    assert judged["decode, B=8"] == (None, None)
    assert judged["throughput, B=1"] == (None, None)
    assert judged["throughput, B=32"] == ("≥ 1.2 × peer", False)
    assert judged["first token, 1024-token prompt"] == ("≤ 1 × peer", False)


def test_what_was_left_out_says_why_and_is_not_judged() -> None:
    slots = Running("slots", notes={"throughput, B=32": "started with 8 slots"})
    dead = Running("dead", reason="no network")
    rows = _rows(110.0, 100.0, slots=slots, dead=dead)
    assert rows["throughput, B=32", "slots"].note == "started with 8 slots"
    assert rows["throughput, B=32", "slots"].holds is None
    assert rows["throughput, B=8", "slots"].holds is False
    assert {row.note for (_, peer), row in rows.items() if peer == "dead"} == {"no network"}


def test_alone_our_values_are_told_without_bars() -> None:
    rows = _rows(110.0, 100.0)
    assert rows["decode, B=1", None].value == 110.0
    assert all(row.holds is None for row in rows.values())


def test_bandwidth_and_memory_are_judged_where_they_matter() -> None:
    rates, told = {"decode, B=1": [80.0, 90.0, 85.0]}, {"read_bytes": 400_000_000}
    judged = bandwidth_row("qwen3-600m", "int4", rates, told, 40.0, judged=True)
    assert (judged.value, judged.holds) == (0.85, True)
    slow = bandwidth_row("qwen3-600m", "int4", rates, told, 44.0, judged=True)
    assert slow.holds is False
    free = bandwidth_row("llama-15m", "int4", rates, told, 40.0, judged=False)
    assert free.bar is None
    small, large = {"weight_bytes": 31}, {"weight_bytes": 100}
    assert memory_row("qwen3-600m", "int4", small, large).holds is False
    assert memory_row("qwen3-600m", "int8", small, large).holds is None


def test_own_measures_have_bars_of_their_own() -> None:
    found = {"step of 8 rows ÷ of 1 row, one sequence": [1.2, 1.5, 1.1]}
    (row,) = own_rows("llama-15m", "bf16", found)
    assert (row.bar, row.holds) == ("≤ 1.3", True)


def test_a_peer_that_would_take_long_is_not_asked() -> None:
    slow = Running("slow", contender=object())  # type: ignore[arg-type]  # nothing is asked of it
    samples = {"slow": {"first token, 1024-token prompt": [9000.0]}}
    assert long_prompt(slow, LARGE, samples, 0) is None
    assert slow.notes == {"first token, 8192-token prompt": "would take about 144 s"}
