"""Ours against transformers on tiny random models of every architecture: logits and text."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.parity.conftest import MadeModel, make_runner
from tests.parity.driver import Driver
from tests.parity.models import KINDS, VOCAB, make_model, save_model

Made = Callable[[str], MadeModel]
NUM_TOKENS = 64
TOLERANCE = 1e-4


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Return random token ids."""
    generator = torch.Generator().manual_seed(seed + 1000 * length)
    return torch.randint(1, VOCAB, (length,), generator=generator).tolist()


def greedy_of(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Return transformers' greedy continuation."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def test_every_kind_differs_from_the_plain_one() -> None:
    """The kinds' switches change the logits; else the parity tests below would prove little."""
    ids = torch.tensor([prompt_of(40)])
    for kind, plain in (
        ("llama-linear", "llama"),
        ("llama-llama3", "llama"),
        ("qwen2-yarn", "qwen2"),
        ("mistral-window", "mistral-full"),
        ("qwen2-upper-window", "qwen2"),
    ):
        with torch.no_grad():
            difference = (make_model(kind)(ids).logits - make_model(plain)(ids).logits).abs().max()
        assert difference > 0.05, kind


@pytest.mark.parametrize("kind", KINDS)
def test_logits_after_every_prefix(kind: str, made: Made) -> None:
    """Prefill of 1, 5 and 40 tokens, and decode steps after it: within 1e-4 of transformers."""
    model, folder = made(kind)
    runner = make_runner(folder)
    driver = Driver(runner)
    for length in (1, 5, 40):
        sequence = driver.start(prompt_of(length), max_len=length + 8)
        for _ in range(6):
            logits = runner.logits(driver.batch([sequence]))
            with torch.no_grad():
                right = model(torch.tensor([sequence.tokens])).logits[:, -1]
            assert logits is not None
            assert (logits - right).abs().max() < TOLERANCE
            driver.step([sequence])


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text(kind: str, made: Made) -> None:
    """64 greedy tokens: alone, batched with others, in chunks, and over a reused prefix."""
    model, folder = made(kind)
    driver = Driver(make_runner(folder))
    prompts = [prompt_of(length) for length in (3, 17, 30, 44)]
    right = [greedy_of(model, prompt) for prompt in prompts]

    alone = driver.start(prompts[2], max_len=30 + NUM_TOKENS)
    assert driver.generate([alone], NUM_TOKENS) == [right[2]]

    batched = [driver.start(p, max_len=len(p) + NUM_TOKENS) for p in prompts]
    assert driver.generate(batched, NUM_TOKENS) == right

    # In chunks of 7, spans that end a prompt, that do not, and decodes mix in one batch.
    chunked = [driver.start(p, max_len=len(p) + NUM_TOKENS) for p in prompts]
    assert driver.generate(chunked, NUM_TOKENS, chunk=7) == right

    longer = prompts[3][:20] + prompt_of(6)
    reused = driver.start(longer, max_len=26 + NUM_TOKENS, shared=batched[3], num_shared_tokens=20)
    assert driver.generate([reused], NUM_TOKENS) == [greedy_of(model, longer)]


def test_sharded_checkpoint(tmp_path: Path) -> None:
    """A model in several files with an index loads as the one in a single file does."""
    model = make_model("llama")
    folder = save_model(model, tmp_path, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    runner = make_runner(folder)
    driver = Driver(runner)
    sequence = driver.start(prompt_of(12), max_len=16)
    with torch.no_grad():
        right = model(torch.tensor([prompt_of(12)])).logits[:, -1]
    logits = runner.logits(driver.batch([sequence]))
    assert logits is not None
    assert (logits - right).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype: str, made: Made) -> None:
    """In 16 bits the logits follow float32's within the format's own error."""
    model, folder = made("qwen3")
    runner = make_runner(folder, dtype=dtype)
    driver = Driver(runner)
    sequence = driver.start(prompt_of(30), max_len=34)
    logits = runner.logits(driver.batch([sequence]))
    with torch.no_grad():
        right = model(torch.tensor([prompt_of(30)])).logits[:, -1]
    assert logits is not None
    relative = (logits.float() - right).norm() / right.norm()
    assert relative < (0.05 if dtype == "bfloat16" else 0.01)
