"""Sequences that outgrow max_kv_tokens, beside transformers with its cache cut by hand."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import Eviction, StepBatch
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.forward_pass import PassSize
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.native_pass import NativePass, why_not_native
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.torch_pass import TorchPass
from quickmatch.engine.wire import Generate
from tests.parity.models import VOCAB, make_model, save_model
from tests.parity.native_steps import CPU, SIZE, TABLES, folders, run, span_of, text_of

__all__ = ["folders"]  # a fixture

LIMIT, KEPT, FIRST, LAST = 128, 112, 16, 56  # tokens; of blocks of 16


def keep(keys: Tensor) -> Tensor:
    """[kv_heads, LIMIT, head_dim] -> [kv_heads, KEPT]: the rule, token by token."""
    rows = []
    for head in keys:
        directions = [key / key.norm().clamp_min(1e-12) for key in head]  # padding is zero
        mean = torch.stack(directions).mean(0)
        middle = range(FIRST, LIMIT - LAST)
        ranked = sorted(middle, key=lambda t: float(directions[t] @ mean))
        chosen = sorted(ranked[: KEPT - FIRST - LAST])
        rows.append([*range(FIRST), *chosen, *range(LIMIT - LAST, LIMIT)])
    return torch.tensor(rows)


@torch.no_grad()
def by_transformers(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy, one token at a time; the cache is drawn together whenever it is full."""
    cache, tokens, position = DynamicCache(), list(prompt), 0
    while len(tokens) < len(prompt) + num_tokens:
        if cache.get_seq_length() == LIMIT:
            for layer in cache.layers:
                kept = keep(layer.keys[0])[None, :, :, None].expand(-1, -1, -1, layer.keys.shape[3])
                layer.keys, layer.values = layer.keys.gather(2, kept), layer.values.gather(2, kept)
        asked: Any = {"position_ids": torch.tensor([[position]]), "past_key_values": cache}
        logits = model(torch.tensor([[tokens[position]]]), **asked).logits
        position += 1
        if position == len(tokens):
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def engine_of(folder: Path, **options: Any) -> Engine:
    usual = {
        "speculation": SpeculationConfig(drafters=()),
        "max_num_batched_tokens": 64,
        "kv_memory_bytes": 1 << 24,
    }
    config = EngineConfig(model=str(folder), dtype="float32", num_threads=1, **{**usual, **options})
    return Engine(ModelRunner(config), config)


def answer(engine: Engine, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        request = Generate(request_id=str(number), prompt_token_ids=prompt, sampling=params)
        assert engine.add(request) is None
    out: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for event in engine.step():
            out[int(event.request_id)] += event.token_ids
        if engine.runner.kv_limit is not None:
            held = [len(s.block_table) for s in engine.scheduler.running]
            assert max(held, default=0) * engine.runner.block_size <= LIMIT
    return out


@pytest.mark.parametrize("kind", ["llama", "llama-mha", "qwen3"])
def test_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Prompts below and beyond the limit, in chunks, side by side, drafted or not."""
    model = make_model(kind)
    folder = save_model(model, tmp_path)
    chance = random.Random(5)
    words = [chance.randrange(1, VOCAB) for _ in range(40)]
    prompts = [(words * 5)[:n] for n in (190, 100, 128)]
    right = [by_transformers(model, prompt, 50) for prompt in prompts]
    whole = answer(engine_of(folder), prompts, 50)
    assert whole != right  # or this would say nothing
    drafts = SpeculationConfig(drafters=("suffix",), is_adaptive=False)
    for options in ({}, {"max_num_batched_tokens": 33}, {"speculation": drafts}):
        engine = engine_of(folder, max_kv_tokens=LIMIT, **options)
        assert answer(engine, prompts, 50) == right
        stats = engine.stats()
        assert stats.num_evicted_tokens > 0
        assert stats.num_blocks_used == 0


def test_a_limit_beyond_the_context_changes_nothing(tmp_path: Path) -> None:
    folder = save_model(make_model("llama"), tmp_path)
    engine = engine_of(folder, max_kv_tokens=256)
    assert engine.runner.kv_limit is None


def test_what_cannot_be_limited_is_told(tmp_path: Path) -> None:
    folder = save_model(make_model("mistral-window"), tmp_path)
    with pytest.raises(ConfigError, match="has a window"):
        engine_of(folder, max_kv_tokens=LIMIT)
    folder = save_model(make_model("llama"), tmp_path)
    with pytest.raises(ConfigError, match="max_kv_tokens is 100; it must be at least 128"):
        engine_of(folder, max_kv_tokens=100)


def test_a_context_may_be_longer_than_the_memory_holds(tmp_path: Path) -> None:
    model = make_model("llama")
    folder = save_model(model, tmp_path)
    whole = engine_of(folder)
    token_bytes = whole.runner.kv_bytes // (whole.runner.num_blocks * 16)
    engine = engine_of(folder, max_kv_tokens=LIMIT, kv_memory_bytes=token_bytes * 9 * 16)
    assert engine.runner.max_model_len == 256
    prompt = text_of(3, 180)
    assert answer(engine, [prompt], 30) == [by_transformers(model, prompt, 30)]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("has_int8_kv", [False, True])
def test_the_native_pass_keeps_what_torch_keeps(
    *, has_int8_kv: bool, folders: dict[str, Path]
) -> None:
    """Targets overlap sources, out of order. A wrong choice would show: it is tried, too."""
    folder = folders["qwen2"]
    model = read_model_config(folder)
    size = PassSize(num_blocks=120, block_size=32, max_model_len=512, has_int8_kv=has_int8_kv)
    reason = why_not_native(model, SIZE.block_size, dtype=torch.bfloat16, device=CPU)
    if reason is not None:
        pytest.skip(reason)
    text = text_of(1, 161)
    table = TABLES[0]
    sources = [table[i // 32] * 32 + i % 32 for i in range(160)]
    places = [table[1], table[0], 99, table[3]]
    targets = [places[i // 32] * 32 + i % 32 for i in range(128)]
    found = []
    for a_pass, num_last in (
        (TorchPass(folder, model, SIZE, dtype=torch.float32, device=CPU), 32),
        (NativePass(folder, model, size, num_threads=2), 32),
        (NativePass(folder, model, size), 96),  # the latest only: another choice
    ):
        prompt, last = StepBatch([], [], [], []), StepBatch([], [], [], [])
        span_of(prompt, text[:160], 0, table)
        run(a_pass, prompt)
        a_pass.evict(Eviction(sources, targets, 32, num_last))
        span_of(last, text, 160, table)
        last.spans[0].context_len, last.spans[0].block_table = 128, [*places, 50]
        last.slots[0] = 50 * 32
        found.append(run(a_pass, last))
    right, native, other = found
    error, wrong = (native - right).abs().mean(), (other - right).abs().mean()
    assert error < 0.02 * right.abs().mean() * (3 if has_int8_kv else 1)
    assert wrong > 3 * error
