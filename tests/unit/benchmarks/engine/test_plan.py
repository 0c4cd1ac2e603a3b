"""The command line: what is chosen, what is refused, and which runs may replace the results."""

import pytest

from benchmarks.engine.contenders import OURS, PEERS, our_spec, peer_spec
from benchmarks.engine.plan import parse_arguments


def test_the_usual_run_measures_every_bar() -> None:
    plan, _ = parse_arguments([])
    assert plan.is_whole
    assert {of_shape.shape.name for of_shape in plan.shapes} == {"llama-15m", "qwen3-600m"}
    assert plan.precisions == ("bf16", "int8", "int4")
    assert "vllm-cpu-eager" not in plan.peers


@pytest.mark.parametrize(
    "arguments",
    [
        ["--quick"],
        ["--shapes", "llama-15m"],
        ["--precisions", "int4"],
        ["--contenders", "quickmatch"],
        ["--repetitions", "1"],
        ["--no-long-prompt"],
        ["--no-own"],
    ],
)
def test_parts_of_it_do_not(arguments: list[str]) -> None:
    plan, _ = parse_arguments(arguments)
    assert not plan.is_whole


def test_more_repetitions_or_peers_are_a_whole_run_too() -> None:
    everyone = ",".join(peer.name for peer in PEERS)
    plan, _ = parse_arguments(["--repetitions", "9", "--contenders", everyone, "--seed", "3"])
    assert plan.is_whole
    assert "eager-loop" in plan.peers


def test_without_the_long_prompt_no_memory_is_kept_for_it() -> None:
    plan, _ = parse_arguments(["--no-long-prompt"])
    assert all(of_shape.max_len <= 2048 for of_shape in plan.shapes)


def test_ours_alone_has_no_peers() -> None:
    plan, _ = parse_arguments(["--contenders", OURS])
    assert plan.peers == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--precisions", "int2"], "'int2'"), (["--contenders", "nobody"], "'nobody'")],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert told in capsys.readouterr().err


def test_every_contender_is_told_the_precision() -> None:
    ours = our_spec("int4", max_len=2048, num_adapters=33, num_threads=None)
    assert ours.options["quantization"] == "int4"
    told = {
        peer.name: peer_spec(peer, "int4", max_len=2048, llama_threads=1).options
        for peer in PEERS
        if "int4" in peer.options
    }
    assert told == {
        "llama.cpp": {"format": "Q4_0", "max_len": 2048, "num_threads": 1},
        "openvino": {"weights": "int4"},
    }


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_peers_on_torch_compute_in_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, dtype: str
) -> None:
    monkeypatch.setattr("benchmarks.peers.cpu_has", lambda _: has_bfloat16)
    told = {
        peer.name: peer_spec(peer, "bf16", max_len=2048, llama_threads=1).options.get("dtype")
        for peer in PEERS
    }
    assert told == {
        "vllm-cpu": dtype,
        "vllm-cpu-eager": dtype,
        "transformers": dtype,
        "llama.cpp": None,
        "openvino": None,
        "eager-loop": None,
    }
