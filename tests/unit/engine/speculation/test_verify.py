"""Verification is lossless: a draft changes how many tokens a step emits, never which.

The model here is a table: the logits after a path are a fixed random function of the path, so what
plain decoding says is known, and every tree can be held to it.
"""

import random
from hashlib import blake2b
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import Sampled, SampleState
from quickmatch.engine.sampler import Sampler
from quickmatch.engine.speculation.tree import DraftTree, Source
from quickmatch.engine.speculation.verify import verify

VOCAB = 6


def logits_after(path: tuple[int, ...]) -> Tensor:
    seed = int.from_bytes(blake2b(repr(path).encode(), digest_size=7).digest())
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 1.5


def tree_logits(output: list[int], tree: DraftTree | None) -> list[Tensor]:
    """The rows of a sequence: after its output, and after each node."""
    nodes = range(0 if tree is None else len(tree))
    paths = [[tree.token_ids[n] for n in tree.path(node)] for node in nodes] if tree else []
    return [logits_after(tuple(output + path)) for path in [[], *paths]]


def random_tree(chance: random.Random, num_nodes: int) -> DraftTree:
    tree = DraftTree()
    taken: set[tuple[int, int]] = set()
    for _ in range(num_nodes):
        parent, token = chance.randint(-1, len(tree) - 1), chance.randrange(VOCAB)
        if (parent, token) not in taken:
            taken.add((parent, token))
            tree.add(token, parent, 0.5, Source.SUFFIX_LOCAL)
    return tree


def state(seed: int, **params: Any) -> SampleState:
    return SampleState(SamplingParams(**params), seed, [1, 2], [], params.pop("eos", ()))


def generate(one: SampleState, length: int, chance: random.Random | None) -> list[Sampled]:
    """Decode with random drafts, or plainly; the output is in the state."""
    sampler, steps = Sampler(), []
    while len(one.output_token_ids) < length:
        tree = random_tree(chance, chance.randint(0, 9)) if chance else None
        logits = torch.stack(tree_logits(one.output_token_ids, tree))
        steps.append(verify(sampler, [one], [tree], logits)[0])
        one.output_token_ids += steps[-1].token_ids
    del one.output_token_ids[length:]
    return steps


KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 3, "min_p": 0.05},
    {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.4},
    {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": -0.3},
    {"temperature": 1.0, "logit_bias": {3: 2.0}, "min_tokens": 30, "stop_token_ids": (2,)},
    {"temperature": 0.0, "logprobs": 2},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_drafts_change_no_token(kind: dict[str, Any]) -> None:
    num_accepted = 0
    for seed in range(15):
        plain, drafted = state(seed, **kind), state(seed, **kind)
        steps = generate(plain, 60, None)
        drafted_steps = generate(drafted, 60, random.Random(seed))
        assert drafted.output_token_ids == plain.output_token_ids
        if "logprobs" in kind:
            seen = [entry for step in drafted_steps for entry in step.logprobs][:60]
            assert seen == [entry for step in steps for entry in step.logprobs][:60]
        num_accepted += sum(len(step.accepted) for step in drafted_steps)
    assert num_accepted > 100


def test_sequences_are_verified_together() -> None:
    chance = random.Random(4)
    states = [state(seed, **kind) for seed, kind in enumerate(KINDS)]
    trees = [random_tree(chance, 8) if i % 3 else None for i in range(len(states))]
    rows = [tree_logits([], tree) for tree in trees]
    together = verify(Sampler(), states, trees, torch.stack([row for r in rows for row in r]))
    for one, tree, own, found in zip(states, trees, rows, together, strict=True):
        assert verify(Sampler(), [one], [tree], torch.stack(own)) == [found]


def test_what_is_accepted_is_a_path_of_the_tree() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        tree = random_tree(chance, 12)
        (found,) = verify(Sampler(), [state(seed)], [tree], torch.stack(tree_logits([], tree)))
        tokens = [tree.token_ids[node] for node in found.accepted]
        assert found.token_ids[:-1] == tokens
        if found.accepted:
            assert tree.path(found.accepted[-1]) == found.accepted


@pytest.mark.parametrize("kind", [{"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.7}])
def test_the_law_of_two_tokens(kind: dict[str, Any]) -> None:
    """Over 20,000 seeds, pairs of tokens follow the target's law; trees differ by seed."""
    counts = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    batch = 500
    for first in range(0, 20_000, batch):
        chance = random.Random(first)
        states = [state(chance.getrandbits(62), **kind) for _ in range(batch)]
        for _ in range(2):
            waiting = [s for s in states if len(s.output_token_ids) < 2]
            trees = [random_tree(chance, 6) for _ in waiting]
            rows = [
                row
                for s, tree in zip(waiting, trees, strict=True)
                for row in tree_logits(s.output_token_ids, tree)
            ]
            for s, found in zip(
                waiting, verify(Sampler(), waiting, list(trees), torch.stack(rows)), strict=True
            ):
                s.output_token_ids += found.token_ids
        for s in states:
            counts[s.output_token_ids[0], s.output_token_ids[1]] += 1
    law = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for a in range(VOCAB):
        law[a] = filtered((), kind)[a] * filtered((a,), kind)
    assert counts[law == 0].sum() == 0
    common = law * counts.sum() >= 5
    seen = [*counts[common].tolist(), float(counts[~common].sum())]
    expected = [*(law[common] * 20_000).tolist(), float(law[~common].sum()) * 20_000]
    if expected[-1] == 0:
        seen, expected = seen[:-1], expected[:-1]
    assert chisquare(seen, [e * sum(seen) / sum(expected) for e in expected]).pvalue > 1e-3


def filtered(path: tuple[int, ...], kind: dict[str, Any]) -> Tensor:
    law = (logits_after(path) / kind["temperature"]).softmax(0).double()
    order = law.argsort(descending=True)
    before = law[order].cumsum(0) - law[order]
    law[order[before >= kind.get("top_p", 1.0)]] = 0
    return law / law.sum()
