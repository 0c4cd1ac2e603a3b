"""The head's drafts are what the dense head says, however the sequence reached the drafter."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.model_config import ModelConfig, RopeConfig
from quickmatch.engine.speculation.head import HeadDrafter
from quickmatch.engine.speculation.head_config import HeadConfig, new_head_config
from quickmatch.engine.speculation.kept_rows import DraftRequest, KeptRows
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.unit.engine.speculation.dense_head import DenseHead
from tests.unit.engine.speculation.random_head import random_head

VOCAB, HIDDEN, BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 60, 32, 8, 120, 160
TARGET = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_model_len=MAX_LEN,
    rms_norm_eps=1e-5,
    rope=RopeConfig(original_max_len=MAX_LEN),
    windows=(None,) * 6,
)
CONFIG = new_head_config(TARGET, draft_vocab_size=24)
EMBEDDING = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(5))
CONFIGS = {
    "usual": CONFIG,
    "one query a key": replace(CONFIG, num_kv_heads=4),
    "norm before residual": replace(CONFIG, norm_before_residual=True),
    "whole vocabulary": replace(CONFIG, draft_vocab_size=VOCAB),
    "narrower, own embeddings": replace(CONFIG, hidden_size=16, head_dim=12),
    "llama3 rope": replace(
        CONFIG, rope=RopeConfig(kind="llama3", theta=500.0, factor=8.0, original_max_len=32)
    ),
}


def _tensors(config: HeadConfig) -> dict[str, Tensor]:
    tensors = random_head(config, scale=0.25)
    if config.hidden_size != HIDDEN:
        generator = torch.Generator().manual_seed(6)
        tensors["embed_tokens.weight"] = torch.randn(VOCAB, config.hidden_size, generator=generator)
    return tensors


def _drafter(config: HeadConfig = CONFIG, **options: Any) -> HeadDrafter:
    settings: dict[str, Any] = {
        "embedding": EMBEDDING,
        "model": TARGET,
        "num_blocks": NUM_BLOCKS,
        "block_size": BLOCK_SIZE,
        "max_model_len": MAX_LEN,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "min_path": 0.0,
        **options,
    }
    return HeadDrafter(config, _tensors(config), **settings)


@dataclass
class Text:
    """A sequence as the target would have computed it: tokens, and features of all but the last."""

    number: int
    length: int
    tokens: list[int] = field(init=False)
    features: Tensor = field(init=False)
    blocks: list[int] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(self.number)
        generator = torch.Generator().manual_seed(self.number)
        self.tokens = [rng.randrange(VOCAB) for _ in range(MAX_LEN)][: self.length]
        self.features = torch.randn(MAX_LEN, 3 * HIDDEN, generator=generator)
        # Every text has blocks of its own, in no order.
        first = self.number * 20
        self.blocks = rng.sample(range(first, first + 20), 20)

    @property
    def request(self) -> DraftRequest:
        return DraftRequest(self.number, self.tokens, self.blocks)

    def kept(self, start: int, end: int, first_row: int = 0) -> KeptRows:
        rows = list(range(first_row, first_row + end - start))
        return KeptRows(self.number, start, rows, self.tokens[start + 1 : end + 1], self.blocks)

    def show(self, drafter: HeadDrafter, start: int = 0, end: int | None = None) -> None:
        end = self.length - 1 if end is None else end
        drafter.observe([self.kept(start, end)], [self.features[start:end]])


def _draft(
    drafter: HeadDrafter,
    *texts: Text,
    depth: int = 5,
    width: int = 1,
    max_nodes: int = 1000,
    least_path: float = 0.0,
) -> list[DraftTree]:
    requests = [text.request for text in texts]
    return drafter.draft(
        requests, depth=depth, width=width, max_nodes=max_nodes, least_path=least_path
    )


def _alone(text: Text, **options: Any) -> DraftTree:
    drafter = _drafter()
    text.show(drafter)
    return _draft(drafter, text, **options)[0]


def _assert_same(seen: DraftTree, expected: DraftTree) -> None:
    assert seen.token_ids == expected.token_ids
    assert seen.parents == expected.parents
    assert seen.confidences == pytest.approx(expected.confidences, abs=1e-5)


def _probabilities(config: HeadConfig, text: Text, path: list[int]) -> list[Tensor]:
    """The dense head's, over the target's vocabulary; -1 for a token that it cannot propose."""
    tensors = _tensors(config)
    dense = DenseHead(config, tensors, EMBEDDING)
    g = dense.fuse(text.features[: text.length - 1])
    targets = torch.arange(config.draft_vocab_size) + tensors["d2t"]
    spread = []
    for own in dense.along(g, text.tokens[1:], path):
        spread.append(torch.full((VOCAB,), -1.0))
        spread[-1][targets] = own
    return spread


@pytest.mark.parametrize("name", CONFIGS)
def test_a_chain_is_the_dense_heads(name: str) -> None:
    config = CONFIGS[name]
    text = Text(1, 30)
    drafter = _drafter(config)
    text.show(drafter)
    tree = _draft(drafter, text, depth=6)[0]
    assert tree.is_chain
    assert len(tree) == 6
    assert set(tree.sources) == {Source.HEAD}
    for step, right in enumerate(_probabilities(config, text, tree.token_ids[:-1])):
        assert tree.token_ids[step] == int(right.argmax())
        assert tree.confidences[step] == pytest.approx(float(right.max()), abs=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_branch_is_the_dense_heads(name: str) -> None:
    config = CONFIGS[name]
    text = Text(1, 30)
    drafter = _drafter(config)
    text.show(drafter)
    tree = _draft(drafter, text, depth=4, width=3)[0]
    assert max(tree.depths()) == 4
    assert len(tree) == 3 + 3 * 9
    for parent, children in tree.children().items():
        path = [tree.token_ids[node] for node in tree.path(parent)]
        right = _probabilities(config, text, path)[-1]
        assert set(children) == set(right.topk(3).indices.tolist())
        for token_id, node in children.items():
            assert tree.confidences[node] == pytest.approx(float(right[token_id]), abs=1e-4)


def test_the_likeliest_nodes_are_kept() -> None:
    whole, pruned = (_alone(Text(2, 21), width=3, depth=4, max_nodes=n) for n in (1000, 7))
    assert len(pruned) == 7
    _assert_same(pruned, whole.keep(range(7)))
    paths: list[float] = []
    for node in range(len(whole)):
        above = paths[whole.parents[node]] if whole.parents[node] >= 0 else 1.0
        paths.append(above * whole.confidences[node])
    assert paths == sorted(paths, reverse=True)


def test_unlikely_paths_are_left_out() -> None:
    text = Text(3, 40)
    whole = _alone(text, width=2, depth=6)
    drafter = _drafter(min_path=0.05)
    text.show(drafter)
    tree = _draft(drafter, text, width=2, depth=6)[0]
    assert 0 < len(tree) < len(whole)
    _assert_same(tree, whole.keep(range(len(tree))))


@pytest.mark.parametrize("width", [1, 2])
def test_unlikely_paths_are_leaves(width: int) -> None:
    # Guards: passes for what no level can pay for.
    text = Text(3, 40)
    whole = _alone(text, width=width)
    likely = [math.prod(whole.confidences[i] for i in whole.path(node)) for node in range(5)]
    least = sorted(likely)[2]
    short = _alone(text, width=width, least_path=least)
    assert 0 < len(short) < len(whole)
    for parent in short.parents:
        above = math.prod(short.confidences[i] for i in short.path(parent)) if parent >= 0 else 1.0
        assert above >= least * (1 - 1e-9)
    assert set(_alone(text, width=width, least_path=1.1).depths()) == {1}


def test_what_is_no_number_is_not_drafted() -> None:
    text = Text(3, 40)
    text.features.fill_(float("inf"))
    drafter = _drafter()
    text.show(drafter)
    assert len(_draft(drafter, text, width=2)[0]) == 0


@pytest.mark.parametrize("cuts", [[1], [64], [3, 40, 41, 100], [149], list(range(1, 150))])
def test_chunks_and_single_rows_are_as_good_as_the_whole(cuts: Sequence[int]) -> None:
    text = Text(4, 151)
    drafter = _drafter()
    for start, end in zip([0, *cuts], [*cuts, 150], strict=True):
        text.show(drafter, start, end)
    _assert_same(_draft(drafter, text, width=2)[0], _alone(text, width=2))


@pytest.mark.parametrize("width", [1, 3])
def test_a_batch_drafts_what_each_would_alone(width: int) -> None:
    texts = [Text(0, 9), Text(1, 120), Text(2, 2)]
    drafter = _drafter()
    # One step of all: their rows lie one behind the other, with a row between that was rejected.
    kept, features, first = [], [], 0
    for text in texts:
        num_rows = text.length - 1
        kept.append(text.kept(0, num_rows, first))
        features += [text.features[:num_rows], torch.full((1, 3 * HIDDEN), 7.0)]
        first += num_rows + 1
    drafter.observe(kept, [torch.cat(features)])
    for text, tree in zip(texts, _draft(drafter, *texts, width=width), strict=True):
        _assert_same(tree, _alone(text, width=width))


@pytest.mark.parametrize("width", [1, 3])
def test_a_rejected_draft_leaves_no_trace(width: int) -> None:
    drafter = _drafter()
    start = 0
    for length in (41, 42, 45, 110, 111):
        text = Text(2, length)
        text.show(drafter, start)
        start = length - 1
        _assert_same(
            _draft(drafter, text, width=width, depth=7)[0], _alone(text, width=width, depth=7)
        )


def test_a_shared_prefix_needs_no_second_look() -> None:
    first, second = Text(1, 90), Text(2, 90)
    second.tokens[:49] = first.tokens[:49]
    second.features[:48] = first.features[:48]
    expected = _alone(second)
    second.blocks[:6] = first.blocks[:6]
    drafter = _drafter()
    first.show(drafter, 0, 60)  # some of it waits until the end
    drafter.forget(1)
    second.show(drafter, 48)
    _assert_same(_draft(drafter, second)[0], expected)


def test_what_was_not_observed_is_not_drafted() -> None:
    drafter = _drafter()
    text, unknown = Text(1, 20), Text(2, 20)
    text.show(drafter)
    assert [len(tree) for tree in _draft(drafter, unknown, text)] == [0, 5]
    assert len(_draft(drafter, text)[0]) == 0  # its row is used; the target has to go on first
    text.show(drafter, 12)
    drafter.forget(1)
    assert len(_draft(drafter, text)[0]) == 0
    text.show(drafter, 0, 18)
    assert len(_draft(drafter, text)[0]) == 0  # the row before the last token is missing


def test_a_sequence_that_starts_over_is_taken_anew() -> None:
    drafter = _drafter()
    text = Text(1, 20)
    text.show(drafter, 0, 12)
    text.show(drafter)  # preempted, and computed again
    _assert_same(_draft(drafter, text)[0], _alone(text))


def test_a_warm_up_is_nobodys() -> None:
    drafter = _drafter()
    text = Text(1, 20)
    kept = text.kept(0, 19)
    kept.sequence_id = -1
    drafter.observe([kept], [text.features[:19]])
    assert not drafter._pending


def test_the_end_of_the_context_is_no_obstacle() -> None:
    text = Text(1, MAX_LEN)
    drafter = _drafter()
    text.show(drafter)
    tree = _draft(drafter, text, depth=8)[0]
    assert tree.confidences[0] == pytest.approx(_alone(text, depth=1).confidences[0], abs=1e-5)


def test_bfloat16_is_close() -> None:
    text = Text(1, 50)
    drafter = _drafter(dtype=torch.bfloat16, embedding=EMBEDDING.bfloat16())
    text.features = text.features.bfloat16()
    text.show(drafter)
    tree = _draft(drafter, text, depth=1, width=24)[0]
    right = _probabilities(CONFIG, Text(1, 50), [])[0]
    for token_id, confidence in zip(tree.token_ids, tree.confidences, strict=True):
        assert confidence == pytest.approx(float(right[token_id]), abs=0.05)


def test_a_head_of_another_target_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="vocabulary 70, this model's is 60"):
        _drafter(replace(CONFIG, vocab_size=70))
