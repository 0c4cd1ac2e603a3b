"""A step of a head's training is the same whether its batch is in memory at once or in parts."""

import pytest
import torch

from quickmatch.engine.config import EngineConfig
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_features import TargetFeatures
from quickmatch.tuning.draft_parts import RowBudget
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.draft_start import new_head
from quickmatch.tuning.draft_train import DraftRun, simulate
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.sft import Listener

SEQUENCES = [
    TokenSequence(list(range(n, n + 20 + n)), [n, 7, 9, 11, n + 1, 2]) for n in range(3, 9)
]


@pytest.fixture(scope="module")
def runner(tiny_folder):
    config = EngineConfig(
        model=str(tiny_folder), dtype="float32", num_threads=1, max_num_seqs=8,
        speculation=SpeculationConfig(drafters=()),
    )  # fmt: skip
    return ModelRunner(config)


class Silent(Listener):
    """Hears nothing."""


def learn(runner, tmp_path, max_rows):
    """Return the gradients of a step, what was foretold, and how many parts there were."""
    settings = DraftSettings.parse({"batch_size": 6, "unroll_steps": 3})
    head = new_head(runner, list(range(runner.vocab_size)), 0)
    budget = RowBudget(max_rows, settings.unroll_steps)
    features = TargetFeatures(
        runner, adapter_row=-1, aux_layers=head.config.aux_layers, draft_ids=head.draft_ids,
        budget=budget,
    )  # fmt: skip
    run = DraftRun(
        head=head, features=features, train=SEQUENCES, settings=settings,
        plan=Plan(6, 1, 1, 1, 1, 0.1), folder=tmp_path, run_key="k", listener=Silent(),
    )  # fmt: skip
    nats, foretold = run._learn(SEQUENCES)
    gradients = {name: p.grad for name, p in head.named_parameters()}
    held = simulate(head, features, SEQUENCES, num_steps=3, batch_size=6)
    return nats, foretold, held, gradients, len(budget.parts(SEQUENCES))


def test_parts_add_up_to_the_whole(runner, tmp_path):
    # All answers are as long and the head proposes every token, so shares are exact.
    nats, foretold, held, gradients, num_parts = learn(runner, tmp_path, 10_000)
    assert num_parts == 1
    *parts, num_parts = learn(runner, tmp_path, 120)
    assert num_parts == 3
    assert parts[0] == pytest.approx(nats, rel=1e-5)
    for found, expected in ((parts[1], foretold), (parts[2], held)):
        assert (found.hits, found.reached) == (expected.hits, expected.reached)
        assert found.num_drafts == expected.num_drafts == [30, 24, 18]
        assert found.nats == pytest.approx(expected.nats, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(parts[3][name], gradient, atol=1e-6), name
