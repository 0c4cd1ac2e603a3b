"""The command line: what is chosen, what is refused, and which runs may replace the results."""

import pytest

from benchmarks.speculation.plan import parse_arguments


def test_the_usual_run_measures_every_bar() -> None:
    plan, _ = parse_arguments([])
    assert plan.is_whole


@pytest.mark.parametrize(
    "arguments",
    [["--quick"], ["--arms", "plain"], ["--contenders", "none"], ["--repetitions", "1"]],
)
def test_parts_of_it_do_not(arguments: list[str]) -> None:
    plan, _ = parse_arguments(arguments)
    assert not plan.is_whole


def test_more_repetitions_are_a_whole_run_too() -> None:
    plan, _ = parse_arguments(["--repetitions", "5", "--seed", "3"])
    assert plan.is_whole
    assert (plan.num_rounds(1), plan.num_rounds(8)) == (11, 6)


def test_quantized_targets_are_measured_alone_and_are_no_whole_run() -> None:
    plan, _ = parse_arguments(["--quantization", "int8", "--contenders", "none"])
    assert plan.quantization == "int8"
    assert not plan.is_whole


def test_names_keep_their_order_and_none_is_none() -> None:
    plan, _ = parse_arguments(["--arms", "adapted,plain", "--contenders", "none"])
    assert plan.arms == ("plain", "adapted")
    assert plan.peers == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--arms", "adapted"], "plain is always among"),
        (["--workloads", "poems"], "'poems'"),
        (["--quantization", "int8"], "--contenders none"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert told in capsys.readouterr().err
