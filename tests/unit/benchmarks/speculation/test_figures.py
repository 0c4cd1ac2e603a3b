"""Rows: who is set beside whom, and by which bar."""

from benchmarks.speculation.figures import (
    better_part,
    equal_rows,
    loop_rows,
    missing_rows,
    rate_rows,
    speed_rows,
)
from benchmarks.speculation.turns import ALL


def samples(workload: str, **rates: float) -> dict[str, dict[str, list[float]]]:
    return {
        name: {f"decode, {workload}, B=1": [rate, rate], f"hit rate, {workload}, B=1": [0.9, 0.7]}
        for name, rate in rates.items()
    }


def test_adapted_is_judged_against_plain_and_generic_on_credit() -> None:
    found = samples("credit", plain=100.0, generic=90.0, adapted=260.0)
    bars = {
        (row.measure, row.peer): (row.bar, row.holds) for row in speed_rows(found, "credit", 1, {})
    }
    assert bars["adapted: decode, credit, B=1", "plain"] == ("≥ 2.5 × peer", True)
    assert bars["adapted: decode, credit, B=1", "generic"] == ("≥ 3 × peer", False)
    assert bars["generic: decode, credit, B=1", "plain"] == (None, None)


def test_adapted_is_set_beside_the_better_part_alone() -> None:
    found = samples(ALL, plain=100.0, suffix=150.0, head=180.0, adapted=200.0)
    assert better_part({name: v[f"decode, {ALL}, B=1"] for name, v in found.items()}) == "head"
    (row,) = [r for r in speed_rows(found, ALL, 1, {}) if r.peer == "head"]
    assert (row.bar, row.holds) == ("≥ 1.05 × peer", True)


def test_the_stream_to_the_wide_target_has_the_same_bar() -> None:
    found = samples(f"{ALL}-wide", plain=100.0, suffix=180.0, head=150.0, adapted=180.0)
    (row,) = [r for r in speed_rows(found, f"{ALL}-wide", 1, {}) if r.peer == "suffix"]
    assert (row.bar, row.holds) == ("≥ 1.05 × peer", False)


def test_without_both_parts_there_is_no_better_one() -> None:
    assert better_part({"suffix": [1.0]}) is None


def test_peers_get_a_row_each_and_missing_ones_their_reason() -> None:
    found = samples("credit", plain=100.0, adapted=200.0, openvino=500.0)
    rows = speed_rows(found, "credit", 1, {"llama.cpp": "no wheel"})
    (ours,) = [row for row in rows if row.peer == "openvino"]
    assert (ours.value, ours.peer_value, ours.ratio) == (200.0, 500.0, 0.4)
    assert [row.note for row in rows if row.peer == "llama.cpp"] == ["no wheel"]


def test_nothing_is_told_without_plain() -> None:
    assert speed_rows(samples("credit", adapted=1.0), "credit", 1, {}) == []


def test_the_hit_rate_of_adapted_on_credit_has_a_bar() -> None:
    rows = {
        row.measure: row for row in rate_rows(samples("credit", adapted=1.0, head=1.0), "credit", 1)
    }
    assert rows["adapted: hit rate, credit, B=1"].holds is True
    assert rows["head: hit rate, credit, B=1"].bar is None


def test_texts_are_judged_only_where_arithmetic_is_exact() -> None:
    (judged,) = equal_rows({"head": 0.99}, "float32", is_judged=True)
    (told,) = equal_rows({"head": 0.99, "gone": None}, "bfloat16")
    assert (judged.holds, told.holds, told.value) == (False, None, 0.99)


def test_loops_and_missing_arms_are_rows() -> None:
    assert loop_rows({"gsm8k": 0.4})[0].value == 0.4
    assert missing_rows("decode", {"x": "why"})[0].note == "why"
