"""What the tests of the native pass have in common: small models, steps, and two checks of bits."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState, Span, StepBatch
from quickmatch.engine.forward_pass import PassSize
from quickmatch.engine.native_pass import NativePass
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.parity.models import save_model

CPU = torch.device("cpu")
SIZE = PassSize(num_blocks=120, block_size=32, max_model_len=512)
STATE = SampleState(SamplingParams(), 0, [0])
_SHAPE: dict[str, Any] = {
    "vocab_size": 199,  # no multiple of a panel
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama-tied-mha": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 6,
            "head_dim": 64,
            "intermediate_size": 256,
        },
    ),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 256}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3-wide-heads": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 96}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, (config, model, options) in KINDS.items():
        torch.manual_seed(1)
        settings = config(**{**_SHAPE, **options})
        made[kind] = save_model(model(settings).bfloat16(), tmp_path_factory.mktemp(kind))
    return made


def span_of(
    batch: StepBatch,
    tokens: list[int],
    context: int,
    table: list[int],
    *,
    tree: DraftTree | None = None,
    adapter_row: int = -1,
) -> None:
    """Append a sequence's new tokens, tokens[context:], or its last one and a tree."""
    new = tokens[context:] if tree is None else [tokens[context], *tree.token_ids]
    depths = range(len(new)) if tree is None else [0, *tree.depths()]
    batch.spans.append(
        Span(len(batch.token_ids), len(new), context, table, adapter_row, STATE, tree)
    )
    batch.token_ids += new
    batch.positions += [context + depth for depth in depths]
    batch.slots += [table[i // 32] * 32 + i % 32 for i in range(context, context + len(new))]


def run(a_pass: Any, batch: StepBatch, aux: tuple[int, ...] = ()) -> Tensor:
    logits = a_pass.run(batch, list(range(len(batch.token_ids))), aux).logits
    return logits.float().clone()  # type: ignore[no-any-return]


def text_of(seed: int, length: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(1, 199) for _ in range(length)]


TABLES = [list(range(i, i + 16)) for i in (0, 20, 40, 60, 80, 100)]


def steps() -> list[StepBatch]:
    """Prompts of several lengths, one in two chunks; then decodes, a tree and a chunk together."""
    texts = [text_of(i, 420) for i in range(4)]
    first, second = StepBatch([], [], [], []), StepBatch([], [], [], [])
    for text, table, (start, end) in zip(
        texts, TABLES, [(33, 34), (7, 8), (300, 301), (50, 83)], strict=False
    ):
        span_of(first, text[:start], 0, table)
        if start == 7:
            tree = DraftTree()
            for parent, token in ((-1, 5), (-1, 6), (1, 7), (0, 8), (2, 9), (1, 9)):
                tree.add(token, parent, 0.5, Source.HEAD)
            span_of(second, text, 7, table, tree=tree)
        else:
            span_of(second, text[:end], start, table)
    return [first, second]


def check_bits_of_rows(native: NativePass, context: int) -> None:
    """Ten tokens behind `context`: one by one, beside another prompt, and between wrong guesses."""
    text = text_of(9, context + 40)
    prompt = StepBatch([], [], [], [])
    span_of(prompt, text[:context], 0, TABLES[0])
    run(native, prompt)
    alone = []
    for i in range(context, context + 10):
        one = StepBatch([], [], [], [])
        span_of(one, text[: i + 1], i, TABLES[0])
        alone.append(run(native, one)[0])
    beside = StepBatch([], [], [], [])
    span_of(beside, text_of(3, 45), 0, TABLES[1])
    span_of(beside, text[: context + 10], context, TABLES[0])
    assert torch.equal(run(native, beside)[45:], torch.stack(alone))
    tree, path, parent = DraftTree(), [], -1
    for token in text[context + 1 : context + 10]:
        tree.add(3, parent, 0.5, Source.HEAD)
        tree.add(token, parent, 0.5, Source.HEAD)
        parent = len(tree) - 1
        path.append(1 + parent)
        tree.add(4, parent, 0.5, Source.HEAD)
    drafted = StepBatch([], [], [], [])
    span_of(drafted, text, context, TABLES[0], tree=tree)
    assert torch.equal(run(native, drafted)[[0, *path]], torch.stack(alone))


def check_moved_nodes(native: NativePass) -> None:
    """The next token finds what a plain pass would have left, bit for bit."""
    text = text_of(2, 40)
    plain = StepBatch([], [], [], [])
    span_of(plain, text[:36], 0, TABLES[0])
    span_of(plain, text[:33], 0, TABLES[1])
    run(native, plain)
    tree = DraftTree()
    for token, parent in ((9, -1), (text[34], -1), (8, 1), (text[35], 1)):
        tree.add(token, parent, 0.5, Source.HEAD)
    drafted = StepBatch([], [], [], [])
    span_of(drafted, text, 33, TABLES[1], tree=tree)
    run(native, drafted)
    base = TABLES[1][1] * 32
    native.move([base + 3, base + 5], [base + 2, base + 3])  # nodes 1 and 3, to tokens 34 and 35
    last = []
    for table in TABLES[:2]:
        batch = StepBatch([], [], [], [])
        span_of(batch, text[:37], 36, table)
        last.append(run(native, batch))
    assert torch.equal(*last)
