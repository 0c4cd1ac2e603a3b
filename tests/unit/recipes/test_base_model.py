"""The shipped base model, and the recipe that makes it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.nn import functional

from quickmatch.base_model import PATH
from recipes.base_model import dense
from recipes.base_model.batches import Batches, encode_chat
from recipes.base_model.export import export, load_folder
from recipes.base_model.loss import CHUNK_ROWS, LinearCrossEntropy
from recipes.base_model.probe import lookup_accuracy, probes
from recipes.base_model.settings import ALL_TASKS, ModelSettings, Phase, TrainSettings
from recipes.base_model.tasks import TASKS, extreme, lookup
from recipes.base_model.text import Source, read_records
from recipes.base_model.tokenizer import save_tokenizer, train_tokenizer
from recipes.base_model.train import Trainer, shortened
from recipes.base_model.words import Words

MAX_FOLDER_BYTES = 40_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(PATH / "tokenizer.json"))


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> Words:
    return Words.of(tokenizer)


def test_folder_holds_a_llama_that_agrees_with_its_config(tokenizer: Tokenizer) -> None:
    config = json.loads((PATH / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    with safe_open(PATH / "model.safetensors", "pt") as weights:
        embedding = weights.get_slice("model.embed_tokens.weight")
        assert embedding.get_shape() == [config["vocab_size"], config["hidden_size"]]
        assert embedding.get_dtype() == "BF16"
        layers = {name.split(".")[2] for name in weights.keys() if ".layers." in name}  # noqa: SIM118
        assert len(layers) == config["num_hidden_layers"]
    assert sum(file.stat().st_size for file in PATH.iterdir() if file.is_file()) < MAX_FOLDER_BYTES


def test_generation_stops_at_the_end_of_a_turn_and_of_a_text(tokenizer: Tokenizer) -> None:
    generation = json.loads((PATH / "generation_config.json").read_text())
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert generation["eos_token_id"] == ends


def test_text_round_trips_and_digits_stand_alone(tokenizer: Tokenizer) -> None:
    text = "Fee:  $54,200 (37 %)\n\tÉlan — 日本 712"
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    assert all(len(token) == 1 for token in encoding.tokens if re.search(r"\d", token))


def test_template_renders_chatml_and_marks_what_the_assistant_says() -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(PATH)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello 7"},
    ]
    asked = loaded.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    made = loaded.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    marked = zip(made["input_ids"], made["assistant_masks"], strict=True)
    assert loaded.decode([token for token, mark in marked if mark]) == "Hello 7<|im_end|>"


def test_training_ids_equal_the_templates(tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(PATH)
    messages = [{"role": "user", "content": "a: 1\n\na?"}, {"role": "assistant", "content": "1"}]
    made = loaded.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, weights = encode_chat(tokenizer, [("a: 1\n\na?", "1")])
    assert (ids, weights) == (made["input_ids"], made["assistant_masks"])


def test_shipped_weights_look_values_up() -> None:
    model, tokenizer = load_folder(PATH)
    held = probes(tokenizer, 40)["lookup_6"]
    assert lookup_accuracy(model, tokenizer, held) >= 0.8


@pytest.mark.parametrize("name", ALL_TASKS)
def test_tasks_depend_on_the_seed_alone(name: str, words: Words) -> None:
    task = TASKS[name][0]
    assert task(Random(5), words) == task(Random(5), words)
    assert task(Random(5), words) != task(Random(6), words)


@pytest.mark.parametrize("name", [name for name in ALL_TASKS if name != "extreme"])
def test_every_figure_of_an_answer_stands_in_the_conversation(name: str, words: Words) -> None:
    for seed in range(30):
        said = ""
        for question, answer in TASKS[name][0](Random(seed), words):
            said += question
            assert set(re.findall(r"\d+", answer)) <= set(re.findall(r"\d+", said))


def test_lookup_answers_are_the_values(words: Words) -> None:
    for seed in range(30):
        turns = lookup(Random(seed), words)
        record = dict(
            _pair(line) for line in turns[0][0].split("\n") if re.search(": | = | - ", line)
        )
        for question, answer in turns:
            sentence = re.fullmatch(r"The (.*?) is (.*)\.", answer)
            key, value = sentence.groups() if sentence else answer.split(": ", 1)
            assert record[key] == value
            assert key in question


def _pair(line: str) -> tuple[str, str]:
    key, value = re.split(r": | = | - ", re.sub(r"^[-*] ", "", line), maxsplit=1)
    return key, value


def test_extreme_names_the_greatest_and_the_least(words: Words) -> None:
    for seed in range(30):
        ((question, answer),) = extreme(Random(seed), words)
        listed = question.split("\n\n")[0].split("\n")
        pairs = [_pair(line) for line in listed]
        amounts = {name: int(value.replace(",", "")) for name, value in pairs}
        pick = max if "largest" in question or "highest" in question else min
        assert answer.split(",")[0] == pick(amounts, key=amounts.get)


def test_the_probe_uses_no_word_of_the_training_tasks(tokenizer: Tokenizer, words: Words) -> None:
    held_out = Words.of(tokenizer, held_out=True)
    assert len(held_out.whole) > 100
    assert not set(held_out.whole) & set(words.whole)


@pytest.mark.parametrize("make", [dense.repeats, dense.pairs])
def test_dense_rows_ask_only_for_what_stood_before(make: object) -> None:
    tokens, weights = make(np.random.default_rng(3), 200, 8192)  # type: ignore[operator]
    asked = np.flatnonzero(weights)
    assert len(tokens) == len(weights) == 200
    assert all(tokens[at] in tokens[:at] for at in asked)


def test_held_out_records_do_not_reach_training(tmp_path: Path) -> None:
    from recipes.base_model.text import load_source

    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"text": f"record {n}"}) + "\n" for n in range(100)))
    tokenizer = train_tokenizer(read_records(path), 300)
    source = load_source(path, tokenizer, 10**6)
    held = tokenizer.decode(source.held_out.tolist())
    assert held.split("record ")[1:] == ["49", "99"]
    assert "record 99" not in tokenizer.decode(source.train.tolist())


TINY = TrainSettings(
    model=ModelSettings(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2,
        num_kv_heads=2, head_dim=16, max_length=64,
    ),
    phases=(Phase(steps=3, rows=2, length=32, dense_share=1.0, dense_vocab=320),
            Phase(steps=3, rows=2, length=48, text_share=1.0)),
)  # fmt: skip


def _tiny_batches() -> Batches:
    texts = iter(["the cat sat on the mat and read the paper with some other cat " * 20])
    tokenizer = train_tokenizer(texts, 320)
    ids = np.arange(500, dtype=np.uint16) % 300
    return Batches(tokenizer, [Source("some", ids, ids)], {}, TINY.seed)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    batches = _tiny_batches()
    whole = Trainer(TINY)
    for _ in range(6):
        whole.train_step(batches)
    first = Trainer(TINY)
    for _ in range(4):
        first.train_step(batches)
    first.save(tmp_path / "checkpoint.pt")
    second = Trainer(TINY)
    second.load(tmp_path / "checkpoint.pt")
    for _ in range(2):
        second.train_step(batches)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert dict(second.num_tokens) == dict(whole.num_tokens)


def test_export_and_load_keep_the_weights(tmp_path: Path) -> None:
    trainer, batches = Trainer(TINY), _tiny_batches()
    save_tokenizer(batches.tokenizer, tmp_path)
    export(trainer.model, batches.tokenizer, tmp_path)
    model, _ = load_folder(tmp_path)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0.01, atol=0.01)


def test_loss_and_gradients_equal_the_stock_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(CHUNK_ROWS + 44, 16, generator=generator, requires_grad=True)
    matrix = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (len(states),), generator=generator)
    weights = torch.rand(len(states), generator=generator)
    ours = LinearCrossEntropy.apply(states, matrix, targets, weights)
    stock = functional.cross_entropy(states @ matrix.T, targets, reduction="none") @ weights
    torch.testing.assert_close(ours, stock)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (states, matrix)), torch.autograd.grad(stock, (states, matrix))
    )


def test_a_shortened_run_keeps_the_order_of_phases_and_ends_at_zero() -> None:
    settings = shortened(TrainSettings(), 200)
    assert settings.num_steps == 200
    assert settings.phases[0] == TrainSettings().phases[0]
    assert settings.lr_scale(199) < settings.lr_scale(100) == 1.0
    with pytest.raises(ValueError, match="after the last phase"):
        settings.phase_at(200)


def test_fresh_weights_already_copy() -> None:
    trainer = Trainer(replace(TINY, model=ModelSettings(num_layers=3)))
    rows = [dense.repeats(np.random.default_rng(n), 96, 8192) for n in range(4)]
    tokens = torch.from_numpy(np.stack([row[0] for row in rows]))
    asked = torch.from_numpy(np.stack([row[1] for row in rows]))[:, 1:] > 0
    with torch.no_grad():
        scores = trainer.model.hidden(tokens[:, :-1]) @ trainer.model.embed_tokens.weight.T
    right = (scores.argmax(-1) == tokens[:, 1:])[asked].float().mean()
    assert right > 0.02  # chance is 1 in 8192
