"""What a run on a GPU measures, and what its contenders are told."""

import pytest

from benchmarks.gpu.contenders import specs_of
from benchmarks.gpu.plan import PRECISIONS, USUAL, GpuPlan, parse_arguments
from benchmarks.models import num_weight_bytes


def test_the_shapes_are_of_one_and_of_eight_billion() -> None:
    numbers = [num_weight_bytes(one.shape) / 2 / 1e9 for one in USUAL]
    assert numbers == pytest.approx([1.24, 8.03], abs=0.01)


def test_a_plain_run_is_whole_and_a_partial_one_is_not() -> None:
    plan, _ = parse_arguments([])
    assert plan.is_whole
    assert plan.precisions == PRECISIONS
    for argv in (["--quick"], ["--shapes", "llama-1b"], ["--precisions", "bf16"], ["--no-peer"],
                 ["--no-checks"]):  # fmt: skip
        assert not parse_arguments(argv)[0].is_whole, argv
    assert parse_arguments(["--seed", "3"])[0].is_whole


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--shapes", "llama-70b"])
    assert "llama-1b" in capsys.readouterr().err


def test_the_peer_runs_beside_bf16_alone() -> None:
    plan, of_shape = GpuPlan(), USUAL[0]
    names = {one: [spec.name for spec in specs_of(plan, of_shape, one)] for one in PRECISIONS}
    assert names.pop("bf16") == ["quickmatch", "transformers-batching"]
    assert set(map(tuple, names.values())) == {("quickmatch",)}
    ours, peer = specs_of(plan, of_shape, "bf16")
    assert ours.options["quantization"] == "none"
    assert ours.options["max_num_seqs"] == peer.options["num_seqs"] == 32
    assert peer.options["prompt_len"] == 1024
    assert specs_of(plan, of_shape, "fp8")[0].options["quantization"] == "fp8"
