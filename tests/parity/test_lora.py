"""Adapters batched with each other and with the base, against peft's merged models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from quickmatch.engine import adapter_steps
from quickmatch.engine.runner import ModelRunner
from tests.parity.conftest import MadeModel, make_runner
from tests.parity.driver import Driver
from tests.parity.models import make_model
from tests.parity.test_transformers import TOLERANCE, greedy_of, prompt_of

# peft 0.21 asks transformers for a property that transformers 5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

Made = Callable[[str], MadeModel]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_TOKENS = 64


def make_adapter(
    kind: str, folder: Path, *, seed: int, std: float = 0.1, **options: Any
) -> PreTrainedModel:
    """Save a random adapter; return the base with the adapter merged in by peft."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, **options}
    model = peft.get_peft_model(make_model(kind), peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, std)
    model.save_pretrained(folder)
    merged: PreTrainedModel = model.merge_and_unload().eval()
    return merged


@pytest.fixture(scope="module")
def runner_and_merged(
    made: Made, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelRunner, dict[str | None, PreTrainedModel]]:
    """A base and three adapters of different ranks and targets, with their merged models."""
    base, folder = made("qwen2")
    paths = {name: tmp_path_factory.mktemp(name) for name in ("a@1", "b@2", "c@1")}
    merged: dict[str | None, PreTrainedModel] = {
        None: base,
        "a@1": make_adapter("qwen2", paths["a@1"], seed=1),
        "b@2": make_adapter(
            "qwen2", paths["b@2"], seed=2, r=7, target_modules=["q_proj", "v_proj", "down_proj"]
        ),
        "c@1": make_adapter(
            "qwen2",
            paths["c@1"],
            seed=3,
            r=8,
            use_rslora=True,
            rank_pattern={"layers.1.self_attn.k_proj": 3, "o_proj": 2},
            alpha_pattern={"up_proj": 20, "model.layers.0.mlp.gate_proj": 5},
        ),
    }
    runner = make_runner(folder)
    for name, path in paths.items():
        runner.put_adapter(name, runner.read_adapter(str(path)))
    return runner, merged


@pytest.mark.parametrize("adapter", ["a@1", "b@2", "c@1"])
def test_one_adapter_gives_the_merged_logits(
    adapter: str, runner_and_merged: tuple[ModelRunner, dict[str | None, PreTrainedModel]]
) -> None:
    runner, merged = runner_and_merged
    driver = Driver(runner)
    sequence = driver.start(prompt_of(21), max_len=40, adapter=adapter)
    for _ in range(3):
        logits = runner.logits(driver.batch([sequence]))
        ids = torch.tensor([sequence.tokens])
        with torch.no_grad():
            right = merged[adapter](ids).logits[:, -1]
            plain = merged[None](ids).logits[:, -1]
        assert logits is not None
        assert (logits - right).abs().max() < TOLERANCE
        assert (logits - plain).abs().max() > 0.1  # the adapter does something
        driver.step([sequence])


@pytest.mark.parametrize("path", ["wide", "grouped"])
def test_base_and_adapters_in_one_batch(
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    runner_and_merged: tuple[ModelRunner, dict[str | None, PreTrainedModel]],
) -> None:
    """Chunked prefills and decodes of base and three adapters mixed, both ways to add them."""
    monkeypatch.setattr(adapter_steps, "_WIDE_LIMIT", 1 << 30 if path == "wide" else 0)
    runner, merged = runner_and_merged
    driver = Driver(runner)
    cases = [(None, 9), ("a@1", 20), ("b@2", 5), (None, 31), ("c@1", 26), ("a@1", 3)]
    sequences = [
        driver.start(prompt_of(length), max_len=length + NUM_TOKENS, adapter=adapter)
        for adapter, length in cases
    ]
    right = [greedy_of(merged[adapter], prompt_of(length)) for adapter, length in cases]
    assert driver.generate(sequences, NUM_TOKENS, chunk=8) == right


def test_hot_load_and_unload_between_steps(made: Made, tmp_path: Path) -> None:
    """Sequences in flight keep their text while adapters come and go beside them."""
    base, folder = made("qwen2")
    merged = {n: make_adapter("qwen2", tmp_path / n, seed=i) for i, n in enumerate("xyz")}
    runner = make_runner(folder)
    runner.put_adapter("x@1", runner.read_adapter(str(tmp_path / "x")))
    runner.put_adapter("y@1", runner.read_adapter(str(tmp_path / "y")))
    driver = Driver(runner)
    first = [
        driver.start(prompt_of(11), max_len=80),
        driver.start(prompt_of(12), max_len=80, adapter="x@1"),
    ]
    for _ in range(10):
        driver.step(first)
    runner.unload_adapter("y@1")
    detail = runner.put_adapter("z@1", runner.read_adapter(str(tmp_path / "z")))
    assert detail["rank"] == 4
    assert runner.adapters == ["x@1", "z@1"]
    last = driver.start(prompt_of(13), max_len=80, adapter="z@1")
    driver.generate([*first, last], NUM_TOKENS)
    assert [s.state.output_token_ids for s in [*first, last]] == [
        greedy_of(base, prompt_of(11)),
        greedy_of(merged["x"], prompt_of(12)),
        greedy_of(merged["z"], prompt_of(13)),
    ]
    with pytest.raises(KeyError):
        runner.adapter_row("y@1")
