"""The law of the sampler, its filters and penalties, and its independence from the batch."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine import sampler as sampler_module
from quickmatch.engine.batch import Sampled, SampleState
from quickmatch.engine.sampler import Row, Sampler, keyed_uniform
from quickmatch.engine.speculation.verify import verify

VOCAB = 40
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2


def state(seed: int = 0, output: list[int] | None = None, **params: Any) -> SampleState:
    eos = params.pop("eos", ())
    prompt = params.pop("prompt", [1, 2])
    return SampleState(SamplingParams(**params), seed, prompt, output or [], eos)


def sample(sampler: Sampler, states: list[SampleState], logits: torch.Tensor) -> list[Sampled]:
    return verify(sampler, states, [None] * len(states), logits)


def draw(num: int, **params: Any) -> torch.Tensor:
    """Counts of tokens over `num` seeds, drawn in batches."""
    states = [state(seed, **params) for seed in range(num)]
    chosen = sample(Sampler(), states, LOGITS.expand(num, -1))
    return torch.bincount(torch.tensor([s.token_ids[0] for s in chosen]), minlength=VOCAB)


def kept_by(**params: Any) -> set[int]:
    return set(draw(3000, **params).nonzero()[:, 0].tolist())


def assert_follows(counts: torch.Tensor, law: torch.Tensor) -> None:
    assert counts[law == 0].sum() == 0
    common = law * counts.sum() >= 5  # rarer tokens are tested together
    seen = [*counts[common].tolist(), int(counts[~common].sum())]
    expected = [*law[common].tolist(), float(law[~common].sum())]
    if expected[-1] == 0:
        seen, expected = seen[:-1], expected[:-1]
    scale = sum(seen) / sum(expected)
    assert chisquare(seen, [e * scale for e in expected]).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_law_over_seeds(temperature: float) -> None:
    law = (LOGITS / temperature).softmax(0)
    assert_follows(draw(20000, temperature=temperature), law.double())


def test_law_over_positions_of_one_sequence() -> None:
    one = state(seed=11)
    sampler, counts = Sampler(), torch.zeros(VOCAB, dtype=torch.int64)
    for _ in range(5000):
        token_id = sample(sampler, [one], LOGITS[None])[0].token_ids[0]
        one.output_token_ids.append(token_id)
        counts[token_id] += 1
    assert_follows(counts, LOGITS.softmax(0).double())


def test_filters_keep_what_they_should() -> None:
    order = LOGITS.argsort(descending=True).tolist()
    law = LOGITS.softmax(0)
    assert kept_by(top_k=3) == set(order[:3])
    nucleus, total = [], 0.0
    for token_id in order:
        nucleus.append(token_id)
        total += float(law[token_id])
        if total >= 0.6:
            break
    assert kept_by(top_p=0.6) == set(nucleus)
    assert kept_by(top_p=1e-6) == {order[0]}
    assert kept_by(min_p=0.3) == {t for t in order if law[t] >= 0.3 * law[order[0]]}
    # top_p counts within what top_k left: 0.5 of the top two's mass is the first alone.
    assert law[order[0]] > law[order[:2]].sum() * 0.5
    assert kept_by(top_k=2, top_p=0.5) == {order[0]}
    filtered = torch.zeros(VOCAB, dtype=torch.float64)
    filtered[order[:5]] = law[order[:5]].double()
    assert_follows(draw(20000, top_k=5), filtered / filtered.sum())


def test_top_p_on_a_flat_law_needs_more_than_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way over the likeliest tokens and the long way over all agree."""
    wide = torch.randn(64, 300, generator=torch.Generator().manual_seed(1)) * 0.1
    states = [state(seed, top_p=0.9) for seed in range(64)]
    right = [s.token_ids[0] for s in sample(Sampler(), states, wide)]
    monkeypatch.setattr(sampler_module, "_TOP_P_FIRST", 16)
    assert [s.token_ids[0] for s in sample(Sampler(), states, wide)] == right


def test_choice_depends_on_row_and_key_alone() -> None:
    """Every mixture of neighbours, order and batch size gives a row the same token."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(12, VOCAB, generator=generator) * 2
    states = [
        state(1, temperature=0.0),
        state(2),
        state(3, top_k=4, output=[5, 6, 7]),
        state(4, top_p=0.7, temperature=1.3),
        state(5, min_p=0.1, repetition_penalty=1.4, output=[3, 3]),
        state(6, frequency_penalty=1.0, output=[9, 9, 4]),
        state(7, logit_bias={3: 50.0, 5: -100.0}),
        state(8, min_tokens=3, eos=(7,), logprobs=2),
        state(9, top_p=0.4, top_k=9),
        state(10, presence_penalty=-2.0, temperature=0.0, output=[1]),
        state(11, temperature=5.0),
        state(12, top_k=1),
    ]
    alone = [sample(Sampler(), [s], logits[i : i + 1])[0] for i, s in enumerate(states)]
    sampler = Sampler()
    assert sample(sampler, states, logits) == alone
    backwards = list(range(11, -1, -1))
    assert sample(sampler, [states[i] for i in backwards], logits[backwards]) == alone[::-1]
    some = [7, 2, 4, 10]
    assert sample(sampler, [states[i] for i in some], logits[some]) == [alone[i] for i in some]


def test_key_is_seed_and_position() -> None:
    uniforms = [keyed_uniform(seed, p) for seed in (0, 1, -1, 2**63 - 1) for p in range(500)]
    assert len(set(uniforms)) == len(uniforms)
    assert all(0 <= u < 1 for u in uniforms)
    assert abs(sum(uniforms) / len(uniforms) - 0.5) < 0.02
    assert keyed_uniform(42, 7) == keyed_uniform(42, 7)


def test_penalties_by_their_definition() -> None:
    """OpenAI's over the output, transformers' repetition over prompt and output too."""
    prompt, output = [4, 8, 8], [8, 9, 9]
    right = LOGITS.clone()
    for token in {4, 8, 9}:
        right[token] = right[token] / 1.3 if right[token] > 0 else right[token] * 1.3
    right[8] -= 0.5 * 1 + 0.25
    right[9] -= 0.5 * 2 + 0.25
    one = state(
        prompt=prompt,
        output=output,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        presence_penalty=0.25,
    )
    sampler = Sampler()
    torch.testing.assert_close(sampler._adjust([Row(one)], LOGITS[None])[0], right)
    # A step later only the new token is counted; the result is that of a fresh sampler.
    for token in (9, 30):
        one.output_token_ids.append(token)
        got = sampler._adjust([Row(one)], LOGITS[None])
        assert torch.equal(got, Sampler()._adjust([Row(one)], LOGITS[None]))
    # The tokens of a draft count as if they were out already.
    got = sampler._adjust([Row(one, (30, 8, 8, 31))], LOGITS[None])
    one.output_token_ids += [30, 8, 8, 31]
    assert torch.equal(got, Sampler()._adjust([Row(one)], LOGITS[None]))


def test_bias_and_early_ends() -> None:
    best = int(LOGITS.argmax())
    second = LOGITS.argsort(descending=True)[1]
    assert sample(Sampler(), [state(temperature=0.0)], LOGITS[None])[0].token_ids[0] == best
    banned = state(temperature=0.0, logit_bias={best: -100.0, 10**6: 5.0})
    assert sample(Sampler(), [banned], LOGITS[None])[0].token_ids[0] == second
    for params in ({"eos": (best,)}, {"stop_token_ids": (best,)}):
        early = state(temperature=0.0, min_tokens=2, **params)
        assert sample(Sampler(), [early], LOGITS[None])[0].token_ids[0] == second
        early.output_token_ids += [0, 0]
        assert sample(Sampler(), [early], LOGITS[None])[0].token_ids[0] == best


def test_logprobs_are_the_raw_models() -> None:
    raw = LOGITS.log_softmax(0)
    one = state(seed=4, temperature=3.0, logit_bias={2: 9.0}, logprobs=3)
    two = state(seed=5, logprobs=0)
    first, second = sample(Sampler(), [one, two], LOGITS.expand(2, -1))
    assert [t for t, _ in first.logprobs[0]] == [first.token_ids[0], *raw.topk(3).indices.tolist()]
    for token_id, logprob in first.logprobs[0]:
        assert math.isclose(logprob, float(raw[token_id]), abs_tol=1e-5)
    assert [t for t, _ in second.logprobs[0]] == [second.token_ids[0]]
    assert sample(Sampler(), [state()], LOGITS[None])[0].logprobs == []


def test_bfloat16_logits_are_taken() -> None:
    rows = LOGITS.to(torch.bfloat16).expand(2, -1)
    greedy, drawn = sample(Sampler(), [state(temperature=0.0), state(1)], rows)
    assert greedy.token_ids[0] == int(rows[0].float().argmax())
    assert 0 <= drawn.token_ids[0] < VOCAB


class Evens:
    """A grammar that allows even tokens."""

    def allowed(self, _output: list[int], _path: list[int]) -> bytes:
        return b"\x55" * (VOCAB // 8 + 4)


def test_law_under_a_grammar_is_that_of_what_it_allows() -> None:
    def bound(seed: int, temperature: float) -> SampleState:
        one = state(seed, temperature=temperature)
        return SampleState(one.params, seed, [1], grammar=Evens())  # type: ignore[arg-type]

    states = [bound(seed, 1.0) for seed in range(20000)]
    chosen = sample(Sampler(), states, LOGITS.expand(len(states), -1))
    counts = torch.bincount(torch.tensor([s.token_ids[0] for s in chosen]), minlength=VOCAB)
    law = LOGITS.double().softmax(0)
    law[1::2] = 0
    assert_follows(counts, law / law.sum())
    (greedy,) = sample(Sampler(), [bound(0, 0.0)], LOGITS[None])
    assert greedy.token_ids == [2 * int(LOGITS[::2].argmax())]
