"""Features and soft targets are the target's own, row for row; answers are the engine's own."""

import pytest
import torch
from transformers import LlamaForCausalLM

from quickmatch.core.errors import ConfigError
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.tuning import draft_features
from quickmatch.tuning.draft_answers import write_answers
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_features import NUM_SOFT_TARGETS, TargetFeatures
from quickmatch.tuning.draft_head import HeadBatch
from quickmatch.tuning.draft_parts import RowBudget

SEQUENCES = [
    TokenSequence([5, 6, 7, 8], [9, 10, 11, 12]),
    TokenSequence(list(range(20, 60)), [3, 4]),
    TokenSequence([100], [101, 102, 103, 104, 105, 106]),
]
DRAFT_IDS = torch.arange(0, 300, 2)


@pytest.fixture(scope="module")
def config(tiny_folder):
    return EngineConfig(
        model=str(tiny_folder), dtype="float32", num_threads=1, max_num_seqs=4,
        speculation=SpeculationConfig(drafters=()),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runner(config):
    return ModelRunner(config)


def teacher(runner, max_rows=1000):
    return TargetFeatures(
        runner, adapter_row=-1, aux_layers=(0, 1), draft_ids=DRAFT_IDS,
        budget=RowBudget(max_rows, num_steps=4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(tiny_folder):
    return LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)


def test_features_are_the_target_s_hidden_states_and_distributions(runner, reference):
    batch = teacher(runner).batch(SEQUENCES)
    assert batch.offset.tolist() == [0, 0, 0]
    assert batch.first.tolist() == [3, 39, 0]
    assert batch.num_drafts.tolist() == [3, 1, 5]
    assert not batch.aux.is_inference()
    for row, sequence in enumerate(SEQUENCES):
        ids = torch.tensor([sequence.token_ids])
        with torch.no_grad():
            out = reference(ids, output_hidden_states=True)
        n = len(sequence) - 1
        expected = torch.cat([out.hidden_states[0], out.hidden_states[1]], -1)[0, :n]
        assert torch.allclose(batch.aux[row, :n], expected, atol=1e-4)
        assert batch.next_ids[row, :n].tolist() == sequence.token_ids[1:]
        for draft in range(len(sequence.output) - 1):
            logits = out.logits[0, len(sequence.prompt) + draft]
            own = logits[DRAFT_IDS].topk(NUM_SOFT_TARGETS)
            assert batch.target_ids[row, draft].tolist() == own.indices.tolist()
            assert torch.allclose(batch.target_probs[row, draft], own.values.softmax(-1), atol=1e-4)
            best = int(logits.argmax())
            assert batch.target_best[row, draft] == (best // 2 if best in DRAFT_IDS else -1)
    assert (batch.target_best[1, 1:] == -1).all()  # padding is nobody's


def same(found, expected):
    """Whether two batches are the same but for rounding."""
    return all(
        torch.allclose(getattr(found, name).float(), getattr(expected, name).float(), atol=1e-4)
        for name in HeadBatch.__slots__
    )


def test_what_is_too_much_for_a_pass_is_read_piece_by_piece(runner, monkeypatch):
    whole = teacher(runner).batch(SEQUENCES)
    passes = []
    features = runner.features
    monkeypatch.setattr(
        runner, "features", lambda step, *more: passes.append(step) or features(step, *more)
    )
    monkeypatch.setattr(draft_features, "MAX_LOGITS", 3 * runner.vocab_size)
    assert same(teacher(runner).batch(SEQUENCES), whole)
    assert max(len(step.token_ids) for step in passes) == 3
    monkeypatch.undo()
    monkeypatch.setattr(runner, "num_blocks", 3)  # of 16 tokens: the longest fits alone
    assert same(teacher(runner).batch(SEQUENCES), whole)


def test_of_a_long_sequence_the_head_sees_what_lies_around_the_answer_s_begin(runner):
    long = TokenSequence(list(range(20, 100)), [3, 4, 5, 6, 7, 8, 9, 10])
    whole, cut = teacher(runner).batch([long]), teacher(runner, max_rows=20).batch([long])
    assert whole.num_drafts.tolist() == [7]
    # 2 drafts of 1 + 4 rows are half of 20; 10 are left for the prompt.
    assert [t.item() for t in (cut.offset, cut.first, cut.num_drafts)] == [70, 9, 2]
    assert cut.next_ids.tolist() == whole.next_ids[:, 70:82].tolist()
    assert torch.allclose(cut.aux, whole.aux[:, 70:82], atol=1e-4)  # of the whole prompt
    assert cut.target_ids.tolist() == whole.target_ids[:, :2].tolist()
    assert cut.target_best.tolist() == whole.target_best[:, :2].tolist()


def test_answers_are_those_of_greedy_decoding(runner, config, reference):
    prompts = [s.prompt for s in SEQUENCES] * 3
    answers = write_answers(
        Engine(runner, config), prompts, adapter=None, temperature=0.0, max_tokens=8, max_length=45
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) <= min(8, 45 - len(prompt))
        for index, token in enumerate(answer):
            with torch.no_grad():
                logits = reference(torch.tensor([prompt + answer[:index]])).logits[0, -1]
            assert int(logits.argmax()) == token
    assert len(answers[1]) <= 5


def test_writing_ends_when_it_is_told_to(runner, config):
    seen = []

    def stop(num_done):
        seen.append(num_done)
        return len(seen) == 3

    prompts = [[5, 6, 7]] * 6
    answers = write_answers(
        Engine(runner, config), prompts, adapter=None, temperature=1.0, max_tokens=50, on_step=stop
    )
    assert len(seen) == 3
    assert max(map(len, answers)) <= 3


def test_a_refused_prompt_is_named(runner, config):
    with pytest.raises(ConfigError, match="the target refuses prompt 2"):
        write_answers(
            Engine(runner, config), [[5], [5] * 500], adapter=None, temperature=0.0, max_tokens=4
        )
