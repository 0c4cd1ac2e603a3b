"""The gate measures what would serve: the deployment's drafters, over an index that is warm."""

import pytest
import torch

from quickmatch.engine.config import EngineConfig
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.head_config import new_head_config
from quickmatch.engine.speculation.head_folder import write_head
from quickmatch.tuning import draft_gate
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_gate import Arm, Candidate, Gate, judge
from quickmatch.tuning.sft import Stopped
from tests.unit.engine.speculation.random_head import random_head

HELD = [TokenSequence([30 + i, 5, 6], [7, 8, 9]) for i in range(6)]
LEARNT = [TokenSequence(list(range(40 + i, 55 + i)), [60 + i, 61, 62, 63]) for i in range(20)]
NEWEST = [s.prompt for s in LEARNT[-8:]]
SERVED = ("prediction", "suffix", "grammar", "head")


@pytest.fixture(scope="module")
def config(tiny_folder):
    return EngineConfig(model=str(tiny_folder), dtype="float32", num_threads=1, max_num_seqs=4)


@pytest.fixture(scope="module")
def runner(config):
    return ModelRunner(config)


@pytest.fixture(scope="module")
def head(tiny_folder, tmp_path_factory):
    model = read_model_config(tiny_folder)
    shape = new_head_config(model, draft_vocab_size=64)
    tensors = {
        name: tensor if name in ("d2t", "t2d") else tensor.to(torch.float32)
        for name, tensor in random_head(shape).items()
    }
    folder = tmp_path_factory.mktemp("gate") / "head"
    write_head(
        folder, shape, tensors, format="eagle3",
        target_name="tiny", target_architecture=model.architecture,
    )  # fmt: skip
    return folder


@pytest.fixture
def written(monkeypatch):
    """What was written while speeds were measured: (engine, prompts) in order."""
    calls, real = [], draft_gate.write_answers

    def spy(engine, prompts, **options):
        calls.append((engine, prompts))
        return real(engine, prompts, **options)

    monkeypatch.setattr(draft_gate, "write_answers", spy)
    return calls


def make_gate(runner, config, drafters=SERVED):
    config = draft_gate.replace(
        config, speculation=SpeculationConfig(drafters=drafters, calibration_s=0)
    )
    return Gate(
        runner, config, adapter="", adapter_path="", depth=2, max_tokens=6,
        max_length=runner.max_model_len,
    )  # fmt: skip


def names(arms):
    return [arm.name for arm in arms]


@pytest.mark.parametrize(
    ("drafters", "has_head", "compared"),
    [
        (SERVED, False, ["plain", "current", "new", "new_alone"]),
        (SERVED, True, ["plain", "current", "new", "new_alone"]),
        (("head",), False, ["plain", "new", "new_alone"]),  # nothing drafts there yet
        (("head",), True, ["plain", "current", "new", "new_alone"]),
        ((), False, ["plain", "new", "new_alone"]),
    ],
)
def test_what_stands_is_measured_as_it_serves(runner, config, head, drafters, has_head, compared):
    candidates = [Candidate("current", "head@1", head)] if has_head else []
    arms = make_gate(runner, config, drafters).measure(
        HELD, LEARNT, [*candidates, Candidate("new", "", head)]
    )
    assert names(arms) == compared
    shown = {arm.name: arm.as_json() for arm in arms}
    with_length = {name for name, figures in shown.items() if "accepted_length" in figures}
    assert with_length == ({"current", "new"} if has_head else {"new"})
    assert all(figures["tokens_per_s"] > 0 for figures in shown.values())
    assert len({figures["num_tokens"] for figures in shown.values()}) == 1
    assert runner.draft_versions == {}


def test_the_index_holds_what_was_learnt_and_nothing_of_what_is_measured(
    runner, config, head, written, monkeypatch
):
    remembered = []
    monkeypatch.setattr(
        draft_gate.Engine, "remember", lambda *given: remembered.append((given[0], given[-1]))
    )
    make_gate(runner, config).measure(HELD, LEARNT, [Candidate("new", "", head)])
    _depth, *calls = written
    engines = list(dict.fromkeys(engine for engine, _ in calls))
    drafters = [e.speculator and e.speculator._config.drafters for e in engines]
    assert drafters == [None, SERVED, SERVED, ("head",)]
    for engine in engines:
        # A prompt of those that count is answered once: the index would know the answer then.
        first, *rounds = [prompts for e, prompts in calls if e is engine]
        assert first == NEWEST
        assert sorted(p for part in rounds for p in part) == [s.prompt for s in HELD]
    expected = [s.prompt[-8:] + s.output for s in LEARNT[:-8]]
    assert remembered == [(engine, expected) for engine in engines]


def test_the_served_arms_draft_from_the_warm_index(runner, config, head, written):
    make_gate(runner, config).measure(HELD, LEARNT, [Candidate("new", "", head)])
    engines = list(dict.fromkeys(engine for engine, _ in written[1:]))
    sizes = [e.stats().speculation and e.stats().speculation.index_tokens for e in engines]
    num_learnt = sum(8 + len(s.output) for s in LEARNT[:-8])
    assert sizes[0] is None
    assert min(sizes[1:3]) > num_learnt
    assert sizes[3] == 0


@pytest.mark.parametrize(
    ("new", "index", "passed"),
    [
        (90, 80, False),  # slower than plain
        (128, 130, False),  # faster than plain, and slower than the index alone
        (133, 130, False),  # within noise: a head has its price
        (135, 130, True),
    ],
)
def test_a_first_head_has_to_beat_what_drafts_without_it(new, index, passed):
    arms = [
        Arm("plain", num_tokens=100, seconds=1.0),
        Arm("current", num_tokens=index, seconds=1.0),
        Arm("new", num_tokens=new, seconds=1.0, accepted_length=3.0),
        Arm("new_alone", num_tokens=120, seconds=1.0),
    ]
    verdict = judge(arms)
    assert verdict.passed is passed
    assert f"{new} tokens/s to {100 if new < 100 else index}" in verdict.reason
    assert ("without a head" in verdict.reason) is (new > 100)


def test_prompts_that_nearly_fill_the_context_are_measured_too(runner, config, head):
    long = [TokenSequence(list(range(20, 145 - i)), [7, 8, 9]) for i in range(3)]
    gate = make_gate(runner, config)
    arms = gate.measure(long, LEARNT, [Candidate("new", "", head)])
    assert max(len(s.prompt) for s in long) + gate.max_tokens > runner.max_model_len
    assert len({arm.num_tokens for arm in arms}) == 1


@pytest.mark.parametrize("num_steps", [1, 40, 150])
def test_a_job_may_be_stopped_at_the_gate(runner, config, head, num_steps):
    gate, steps = make_gate(runner, config), iter(range(num_steps))
    gate.should_stop = lambda: next(steps, None) is None
    with pytest.raises(Stopped):
        gate.measure(HELD, LEARNT, [Candidate("new", "", head)])
