"""A draft model that is the target itself drafts the target's own continuation, to the token."""

import json
import random
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from quickmatch.core.errors import ConfigError
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.batch import StepBatch
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.speculation import draft_model
from quickmatch.engine.speculation.draft_model import ModelDrafter
from quickmatch.engine.speculation.kept_rows import DraftRequest
from quickmatch.engine.speculation.same_vocabulary import check_same_vocabulary
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.parity.models import make_model, save_model

BLOCK_SIZE, NUM_BLOCKS, MAX_LEN, VOCAB = 8, 100, 128, 199


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama")


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(model, tmp_path_factory.mktemp("model"))


def _drafter(folder: Path, **options: Any) -> ModelDrafter:
    settings: dict[str, Any] = {
        "target": read_model_config(folder),
        "num_blocks": NUM_BLOCKS,
        "block_size": BLOCK_SIZE,
        "max_model_len": MAX_LEN,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "min_path": 0.0,
        **options,
    }
    return ModelDrafter(folder, **settings)


@dataclass
class Text:
    """A sequence and its blocks, which end with its last token but one, as in the engine."""

    number: int
    length: int
    tokens: list[int] = field(init=False)
    blocks: list[int] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(self.number)
        self.tokens = [rng.randrange(VOCAB) for _ in range(self.length)]
        self.blocks = rng.sample(range(self.number * 16, self.number * 16 + 16), 16)

    @property
    def request(self) -> DraftRequest:
        num_blocks = -(-(len(self.tokens) - 1) // BLOCK_SIZE)
        return DraftRequest(self.number, self.tokens, self.blocks[:num_blocks])


def _draft(drafter: ModelDrafter, *texts: Text, depth: int = 6, **options: Any) -> list[DraftTree]:
    requests = [text.request for text in texts]
    return drafter.draft(requests, depth=depth, **{"width": 1, "max_nodes": 99, **options})


@torch.inference_mode()
def _continuation(model: LlamaForCausalLM, tokens: list[int], num_tokens: int) -> list[int]:
    """Greedy, by transformers, without a cache."""
    tokens, start = list(tokens), len(tokens)
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[start:]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 17, 60])
def test_the_target_as_its_own_draft_model_is_never_wrong(
    model: Any, folder: Path, length: int
) -> None:
    text = Text(1, length)
    tree = _draft(_drafter(folder), text)[0]
    assert tree.is_chain
    assert tree.token_ids == _continuation(model, text.tokens, 6)
    assert set(tree.sources) == {Source.DRAFT_MODEL}


def test_confidences_are_the_models_probabilities(model: Any, folder: Path) -> None:
    text = Text(1, 20)
    tree = _draft(_drafter(folder), text, depth=3)[0]
    with torch.inference_mode():
        logits = model(torch.tensor([text.tokens + tree.token_ids])).logits[0, 19:22]
    right = logits.softmax(-1).max(-1).values.tolist()
    assert tree.confidences == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("num_accepted", [0, 1, 4, 6])
def test_it_goes_on_whatever_part_of_a_draft_was_accepted(
    model: Any, folder: Path, num_accepted: int
) -> None:
    text, drafter = Text(1, 11), _drafter(folder)
    for _ in range(6):
        tree = _draft(drafter, text)[0]
        text.tokens += [*tree.token_ids[:num_accepted], 5]
        assert _draft(drafter, text)[0].token_ids == _continuation(model, text.tokens, 6)


def test_accepted_tokens_are_not_computed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter, rows = _drafter(folder), []
    run = drafter._pass.run

    def counting(batch: StepBatch, wanted: list[int]) -> Any:
        rows.append(len(batch.token_ids))
        return run(batch, wanted)

    monkeypatch.setattr(drafter._pass, "run", counting)
    text = Text(1, 11)
    text.tokens += _draft(drafter, text, depth=4)[0].token_ids[:3]
    assert rows == [11, 1, 1, 1]
    _draft(drafter, text, depth=2)
    assert rows[4:] == [1, 1]  # what was drafted stood in the sequence's own blocks
    text.tokens += [5] * 9
    _draft(drafter, text, depth=1)
    assert rows[6:] == [9]


def test_a_batch_drafts_what_each_would_alone(model: Any, folder: Path) -> None:
    texts = [Text(1, 5), Text(2, 61), Text(3, 24)]
    trees = _draft(_drafter(folder), *texts)
    for text, tree in zip(texts, trees, strict=True):
        assert tree.token_ids == _continuation(model, text.tokens, 6)


def test_blocks_of_another_sequence_are_used_while_they_hold_the_same(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = Text(1, 40), Text(2, 33), Text(3, 33)
    for other in (second, third):
        other.tokens[:28] = first.tokens[:28]
    drafter, rows = _drafter(folder), []
    _draft(drafter, first)
    drafter.forget(1)
    second.blocks[:3] = first.blocks[:3]
    run = drafter._pass.run
    monkeypatch.setattr(
        drafter._pass, "run", lambda b, wanted: rows.append(len(b.token_ids)) or run(b, wanted)
    )
    assert _draft(drafter, second)[0].token_ids == _continuation(model, second.tokens, 6)
    assert rows[0] == 33 - 24
    # The blocks are another's now, who writes other tokens there; then comes the prefix again.
    fourth = Text(4, 30)
    fourth.blocks[:2] = first.blocks[1:3]
    _draft(drafter, fourth)
    third.blocks[:3] = first.blocks[:3]
    rows.clear()
    assert _draft(drafter, third)[0].token_ids == _continuation(model, third.tokens, 6)
    assert rows[0] == 33 - 8


def test_new_blocks_after_preemption_are_computed(model: Any, folder: Path) -> None:
    text, drafter = Text(1, 30), _drafter(folder)
    _draft(drafter, text)
    text.blocks[1], text.blocks[2] = 97, 98
    assert _draft(drafter, text)[0].token_ids == _continuation(model, text.tokens, 6)


def test_a_long_prompt_is_caught_up_with_in_parts(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "_MAX_ROWS", 32)
    drafter, short, long = _drafter(folder), Text(1, 20), Text(2, 70)
    for lengths in ([6, 0], [6, 0], [6, 6]):  # 20 + 12 rows, 1 + 31, 1 + 27
        trees = _draft(drafter, short, long)
        assert [len(tree) for tree in trees] == lengths
        assert trees[0].token_ids == _continuation(model, short.tokens, 6)
    assert trees[1].token_ids == _continuation(model, long.tokens, 6)


def test_it_stops_at_the_context_at_max_nodes_and_where_it_is_unsure(
    model: Any, folder: Path
) -> None:
    text = Text(1, MAX_LEN - 2)
    tree = _draft(_drafter(folder), text)[0]
    assert tree.token_ids == _continuation(model, text.tokens, 3)
    assert len(_draft(_drafter(folder), Text(1, MAX_LEN + 1))[0]) == 0
    assert len(_draft(_drafter(folder), Text(1, 20), max_nodes=2)[0]) == 2
    first = _draft(_drafter(folder), Text(1, 20))[0].confidences[0]
    assert len(_draft(_drafter(folder), Text(1, 20), least_path=first * 1.01)[0]) == 1
    assert len(_draft(_drafter(folder, min_path=first * 1.01), Text(1, 20))[0]) == 0


def test_what_is_no_number_is_not_drafted(folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    assert len(_draft(_drafter(damaged), Text(1, 20))[0]) == 0


def test_without_spare_blocks_it_stops_early(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "_NUM_SPARE_BLOCKS", 1)
    texts = [Text(1, 14), Text(2, 14)]  # two blocks each, with room for two drafted tokens
    trees = _draft(_drafter(folder), *texts)
    assert [len(tree) for tree in trees] == [6, 3]
    for text, tree in zip(texts, trees, strict=True):
        assert tree.token_ids == _continuation(model, text.tokens, len(tree))


def test_what_the_target_does_not_know_is_not_drafted(folder: Path, tmp_path: Path) -> None:
    """The draft model's vocabulary is padded to more than the target's."""
    wide = make_model("llama", vocab_size=VOCAB + 9)
    with torch.no_grad():
        wide.lm_head.weight[VOCAB:] *= 9
    drafter = _drafter(
        save_model(wide, tmp_path / "wide"),
        target=read_model_config(folder),
        target_folder=folder,  # of an equal tokenizer
    )
    text = Text(1, 20)
    tree = _draft(drafter, text)[0]
    tokens = list(text.tokens)
    with torch.inference_mode():
        for drafted in tree.token_ids:
            logits = wide(torch.tensor([tokens])).logits[0, -1]
            assert drafted == int(logits[:VOCAB].argmax())
            tokens.append(drafted)
        assert len(tree) == 6
        assert int(wide(torch.tensor([tokens])).logits[0, 19:-1].argmax(-1).max()) >= VOCAB


def test_nothing_is_drafted_behind_a_token_that_the_draft_model_does_not_know(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's vocabulary is padded to more than the draft model's."""
    target = replace(read_model_config(folder), vocab_size=VOCAB + 9)
    drafter = _drafter(folder, target=target, target_folder=folder)
    odd, other, late = Text(1, 20), Text(2, 20), Text(3, 20)
    odd.tokens[7] = VOCAB
    trees = _draft(drafter, odd, other, late)
    assert [len(tree) for tree in trees] == [0, 6, 6]
    late.tokens += [VOCAB + 8, 5]
    for _ in range(2):
        trees = _draft(drafter, odd, other, late)
        assert [len(tree) for tree in trees] == [0, 6, 0]
        assert trees[1].token_ids == _continuation(model, other.tokens, 6)
    # A prompt that is caught up with in parts is as far as its first such token.
    monkeypatch.setattr(draft_model, "_MAX_ROWS", 8)
    long = Text(4, 40)
    long.tokens[20] = VOCAB
    assert [len(_draft(drafter, long)[0]) for _ in range(6)] == [0] * 6


def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_model(make_model("llama", vocab_size=150), tmp_path / "other")
    with pytest.raises(ConfigError, match="a vocabulary of 150, the target one of 199"):
        _drafter(other, target=read_model_config(folder))


def test_vocabularies_of_one_tokenizer_may_be_padded_differently(tmp_path: Path) -> None:
    shipped = Path(model_source(SHIPPED_MODEL))
    config = read_model_config(shipped)
    padded = replace(config, vocab_size=config.vocab_size + 128)
    check_same_vocabulary(shipped, padded, shipped, config)
    shutil.copy(shipped / "tokenizer.json", tmp_path)
    with (tmp_path / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")  # the same table in another file
    check_same_vocabulary(tmp_path, config, shipped, padded)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"not both have a tokenizer\.json"):
        check_same_vocabulary(tmp_path, config, shipped, padded)
    check_same_vocabulary(tmp_path, config, shipped, config)


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path) -> None:
    shipped = Path(model_source(SHIPPED_MODEL))
    config = read_model_config(shipped)
    check_same_vocabulary(shipped, config, shipped, config)
    text = (shipped / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    check_same_vocabulary(tmp_path, config, shipped, config)
    raw = json.loads(text)
    vocabulary = raw["model"]["vocab"]
    vocabulary["the"], vocabulary["a"] = vocabulary["a"], vocabulary["the"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ConfigError, match=r'"(the|a)" is token \d+ in .* and \d+ in'):
        check_same_vocabulary(tmp_path, config, shipped, config)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no tokenizer"):
        check_same_vocabulary(tmp_path, config, shipped, config)
