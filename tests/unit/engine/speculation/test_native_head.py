"""The native head: what the dense head says, to bfloat16; the same bits however it was reached."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from quickmatch.engine.model_config import ModelConfig, RopeConfig
from quickmatch.engine.speculation.head_config import HeadConfig, new_head_config
from quickmatch.engine.speculation.kept_rows import DraftRequest, KeptRows
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.unit.engine.speculation.dense_head import DenseHead
from tests.unit.engine.speculation.random_head import random_head

native = pytest.importorskip("quickmatch._native", reason="the native extension is not installed")
if not native.decoder_isas():
    pytest.skip("this processor has no AVX2", allow_module_level=True)
from quickmatch.engine.native_pass import kernels  # noqa: E402
from quickmatch.engine.speculation.native_head import NativeHead, can_run  # noqa: E402

pytestmark = pytest.mark.usefixtures("isa")
VOCAB, HIDDEN, BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 60, 64, 32, 40, 250
TARGET = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_model_len=MAX_LEN,
    rms_norm_eps=1e-5,
    rope=RopeConfig(original_max_len=MAX_LEN),
    windows=(None,) * 6,
)
CONFIG = new_head_config(TARGET, draft_vocab_size=27)
CONFIGS = {
    "usual": CONFIG,
    "norm before residual": replace(CONFIG, norm_before_residual=True),
    "whole vocabulary": replace(CONFIG, draft_vocab_size=VOCAB, num_kv_heads=4),
    "narrower, own embeddings": replace(CONFIG, hidden_size=32, head_dim=64),
}
EMBEDDING = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(5)).bfloat16()


def _tensors(config: HeadConfig) -> dict[str, Tensor]:
    tensors = random_head(config, scale=0.25)
    if config.hidden_size != HIDDEN:
        generator = torch.Generator().manual_seed(6)
        tensors["embed_tokens.weight"] = torch.randn(VOCAB, config.hidden_size, generator=generator)
    return {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _drafter(config: HeadConfig = CONFIG, *, min_path: float = 0.0) -> NativeHead:
    shape = {
        name: getattr(TARGET, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_model_len",
            "rms_norm_eps",
        )
    }
    shape |= {"num_slots": NUM_BLOCKS * BLOCK_SIZE, "block_size": BLOCK_SIZE}
    return NativeHead(
        config,
        _tensors(config),
        kernels().Decoder(shape, num_threads=1),
        kernels(),
        embedding=EMBEDDING,
        model=TARGET,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_model_len=MAX_LEN,
        min_path=min_path,
    )


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
        self.features = torch.randn(3, MAX_LEN, HIDDEN, generator=generator).bfloat16()
        first = self.number * 8
        self.blocks = rng.sample(range(first, first + 8), 8)

    @property
    def request(self) -> DraftRequest:
        return DraftRequest(self.number, self.tokens, self.blocks)

    def kept(self, start: int, end: int, first_row: int = 0) -> KeptRows:
        rows = list(range(first_row, first_row + end - start))
        return KeptRows(self.number, start, rows, self.tokens[start + 1 : end + 1], self.blocks)

    def show(self, drafter: NativeHead, start: int = 0, end: int | None = None) -> None:
        end = self.length - 1 if end is None else end
        aux = [layer[start:end].contiguous() for layer in self.features]
        drafter.observe([self.kept(start, end)], aux)


def _draft(
    drafter: NativeHead,
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


def _paths(tree: DraftTree) -> list[float]:
    """The path probability of each node."""
    paths: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        paths.append(confidence * (paths[parent] if parent >= 0 else 1.0))
    return paths


def _alone(text: Text, **options: Any) -> DraftTree:
    drafter = _drafter()
    text.show(drafter)
    return _draft(drafter, text, **options)[0]


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_path_is_the_dense_heads(name: str, width: int) -> None:
    config = CONFIGS[name]
    text = Text(1, 40)
    drafter = _drafter(config)
    text.show(drafter)
    tree = _draft(drafter, text, depth=4, width=width)[0]
    assert max(tree.depths()) == 4
    assert set(tree.sources) == {Source.HEAD}
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in _tensors(config).items()}
    dense = DenseHead(config, tensors, EMBEDDING.float())
    g = dense.fuse(torch.cat(list(text.features[:, : text.length - 1].float()), -1))
    targets = (torch.arange(config.draft_vocab_size) + tensors["d2t"]).tolist()
    for parent, children in tree.children().items():
        path = [tree.token_ids[node] for node in tree.path(parent)] if parent >= 0 else []
        right = dense.along(g, text.tokens[1:], path)[-1]
        least = float(right.topk(width).values[-1])
        for token_id, node in children.items():
            probability = float(right[targets.index(token_id)])
            assert tree.confidences[node] == pytest.approx(probability, abs=0.03)
            assert probability > least - 0.03


def test_the_likeliest_nodes_are_kept_and_unlikely_paths_left_out() -> None:
    text = Text(2, 21)
    whole, pruned = (_alone(text, width=3, depth=4, max_nodes=n) for n in (1000, 7))
    assert pruned == whole.keep(range(7))
    drafter = _drafter(min_path=0.05)
    text.show(drafter)
    tree = _draft(drafter, text, width=3, depth=4)[0]
    assert 0 < len(tree) < len(whole)
    assert tree == whole.keep(range(len(tree)))


@pytest.mark.parametrize("width", [1, 3])
def test_unlikely_paths_are_leaves(width: int) -> None:
    # Guards: passes for what no level can pay for.
    text = Text(2, 21)
    whole = _alone(text, width=width)
    least = sorted(_paths(whole))[len(whole) // 2]
    short = _alone(text, width=width, least_path=least)
    assert 0 < len(short) < len(whole)
    paths = _paths(short)
    assert all(paths[parent] >= least for parent in short.parents if parent >= 0)
    assert set(_alone(text, width=width, least_path=1.1).depths()) == {1}


@pytest.mark.parametrize("cuts", [[1], [64], [3, 40, 41, 100], [199], list(range(1, 200))])
def test_chunks_and_single_rows_are_as_good_as_the_whole(cuts: Sequence[int]) -> None:
    text = Text(4, 201)
    drafter = _drafter()
    for start, end in zip([0, *cuts], [*cuts, 200], strict=True):
        text.show(drafter, start, end)
    assert _draft(drafter, text, width=2)[0] == _alone(text, width=2)


@pytest.mark.parametrize("width", [1, 4])
def test_a_batch_drafts_what_each_would_alone(width: int) -> None:
    texts = [Text(0, 9), Text(1, 120), Text(2, 2)]
    drafter = _drafter()
    # One step of all: their rows lie one behind the other, with a row between that was rejected.
    kept, features, first = [], [], 0
    for text in texts:
        num_rows = text.length - 1
        kept.append(text.kept(0, num_rows, first))
        features += [text.features[:, :num_rows], torch.full((3, 1, HIDDEN), 7.0).bfloat16()]
        first += num_rows + 1
    drafter.observe(kept, [layer.contiguous() for layer in torch.cat(features, 1)])
    for text, tree in zip(texts, _draft(drafter, *texts, width=width), strict=True):
        assert tree == _alone(text, width=width)


def test_more_sequences_than_are_drafted_for_together() -> None:
    texts = [Text(i % 5, 20) for i in range(70)]
    for i, text in enumerate(texts):
        text.number = i
    drafter = _drafter()
    for text in texts[:5]:
        text.show(drafter)
    trees = _draft(drafter, *texts[:5])
    many = _drafter()
    for text in texts:
        text.show(many)  # those of like blocks hold the same
    for i, tree in enumerate(_draft(many, *texts)):
        assert tree == trees[i % 5]


@pytest.mark.parametrize("width", [1, 3])
def test_a_rejected_draft_leaves_no_trace(width: int) -> None:
    drafter = _drafter()
    start = 0
    for length in (41, 42, 45, 49, 110, 111):
        text = Text(2, length)
        text.show(drafter, start)
        start = length - 1
        tree = _draft(drafter, text, width=width, depth=12)[0]
        assert tree == _alone(text, width=width, depth=12)


def test_a_shared_prefix_needs_no_second_look() -> None:
    first, second = Text(1, 190), Text(2, 190)
    second.tokens[:97] = first.tokens[:97]
    second.features[:, :96] = first.features[:, :96]
    expected = _alone(second)
    second.blocks[:3] = first.blocks[:3]
    drafter = _drafter()
    first.show(drafter, 0, 100)  # some of it waits until the end
    drafter.forget(1)
    second.show(drafter, 96)
    assert _draft(drafter, second)[0] == expected


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
    text.show(drafter)  # preempted, and computed again
    assert _draft(drafter, text)[0] == _alone(text)


def test_a_warm_up_is_nobodys_and_the_end_of_the_context_no_obstacle() -> None:
    drafter = _drafter()
    text = Text(1, MAX_LEN)
    kept = text.kept(0, 19)
    kept.sequence_id = -1
    drafter.observe([kept], list(text.features))
    text.show(drafter)
    assert len(_draft(drafter, text, depth=8)[0]) == 8


def test_what_is_no_number_is_not_drafted() -> None:
    text = Text(3, 40)
    text.features.fill_(float("inf"))
    drafter = _drafter()
    text.show(drafter)
    assert len(_draft(drafter, text, width=2)[0]) == 0


def test_widths_that_the_kernels_do_not_take_are_told() -> None:
    assert can_run(CONFIG)
    assert not can_run(replace(CONFIG, head_dim=16))
    assert not can_run(replace(CONFIG, hidden_size=40))
