"""Chooses each row's next token from its logits, as its SamplingParams ask.

A row is a sequence's next token, or the one behind some tokens of a draft: those count as if they
were in the output already (`verify.py` walks the draft).

Order, as vLLM has it: logit_bias; penalties (repetition over prompt and output, as in
transformers; frequency and presence over the output, as OpenAI defines them); tokens that would
end the text too early, or that a grammar does not allow, masked; then for rows that sample:
temperature, min_p, top_k, top_p.

Keyed choice. A row's token is the inverse of its cumulative distribution, over the vocabulary in
order of id, at one uniform number that splitmix64 makes of (seed, position of the output token).
So the choice is a function of the row's logits and its key: not of the batch, nor of how often
or in what order steps were taken. Over the vocabulary's order and not the sorted one, a change
of the logits by rounding moves the choice only where it moves the distribution.

Ties at the edge of top_k and top_p are kept. logprobs are those of the model's raw logits, before
any of the above.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState
from quickmatch.engine.penalties import PenaltyHistories

_MASK64 = (1 << 64) - 1
# top_p looks at so many of the likeliest tokens first, and at all only where they are too few.
_TOP_P_FIRST = 512


def keyed_uniform(seed: int, position: int) -> float:
    """Return a uniform number in [0, 1) made of (seed, position); 52 bits.

    Source: splitmix64 (Steele, Lea, Flood 2014), its output function applied twice.
    """
    mixed = _splitmix64((seed & _MASK64) ^ _splitmix64((position + 1) & _MASK64))
    return (mixed >> 12) / (1 << 52)


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


@dataclass(slots=True)
class Row:
    """One row of logits: a sequence's next token, behind `path` of a draft's tokens."""

    state: SampleState
    path: Sequence[int] = ()

    @property
    def position(self) -> int:
        """Index in the output of the token that this row chooses."""
        return len(self.state.output_token_ids) + len(self.path)

    @property
    def is_early(self) -> bool:
        """Whether the output may not end here yet."""
        return self.position < self.state.params.min_tokens

    @property
    def is_plain(self) -> bool:
        """Whether its token is the argmax of the logits as they are."""
        return self.state.takes_argmax and not self.is_early


class Sampler:
    """Samples for a step's rows. Keeps only what penalties would otherwise count anew."""

    def __init__(self) -> None:
        self._histories = PenaltyHistories()

    def choose(self, rows: list[Row], logits: Tensor) -> list[int]:
        """Choose a token a row. logits: [len(rows), vocab], float32; not changed."""
        adjusted = self._adjust(rows, logits)
        chosen: list[int] = adjusted.argmax(-1).tolist()
        drawn = [i for i, row in enumerate(rows) if not row.state.params.is_greedy]
        for i, token_id in zip(drawn, _draw(rows, drawn, adjusted), strict=True):
            chosen[i] = token_id
        return chosen

    def forget_others(self, states: list[SampleState]) -> None:
        """Keep the histories of these sequences only: those of the step that ends."""
        self._histories.keep_only(states)

    def _adjust(self, rows: list[Row], logits: Tensor) -> Tensor:
        """Return the logits with biases, penalties and early ends applied, or the input."""
        biased = [i for i, row in enumerate(rows) if row.state.params.logit_bias]
        penalised = [i for i, row in enumerate(rows) if row.state.params.has_penalties]
        early = [i for i, row in enumerate(rows) if row.is_early]
        bound = [i for i, row in enumerate(rows) if row.state.grammar is not None]
        if not (biased or penalised or early or bound):
            return logits
        adjusted = logits.clone()
        for i in biased:
            _add_bias(adjusted[i], rows[i].state.params)
        for i in penalised:
            self._histories.apply(rows[i].state, rows[i].path, adjusted[i])
        for i in early:
            state = rows[i].state
            ends = [*state.eos_token_ids, *state.params.stop_token_ids]
            adjusted[i, [t for t in ends if 0 <= t < adjusted.shape[1]]] = -torch.inf
        for i in bound:
            _mask(adjusted[i], rows[i])
        return adjusted


def _add_bias(row: Tensor, params: SamplingParams) -> None:
    pairs = [(t, b) for t, b in params.logit_bias.items() if 0 <= t < len(row)]
    ids = torch.tensor([t for t, _ in pairs], dtype=torch.int64, device=row.device)
    biases = torch.tensor([b for _, b in pairs], dtype=torch.float32, device=row.device)
    row.index_add_(0, ids, biases)


def _mask(logits: Tensor, row: Row) -> None:
    """logits: [vocab], changed in place."""
    assert row.state.grammar is not None
    allowed = row.state.grammar.allowed(row.state.output_token_ids, row.path)
    packed = torch.frombuffer(bytearray(allowed), dtype=torch.uint8).to(logits.device)
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits.device)) & 1
    logits.masked_fill_(bits.view(-1)[: len(logits)] == 0, -torch.inf)


def _draw(rows: list[Row], drawn: list[int], logits: Tensor) -> list[int]:
    """Return a token for each row in `drawn`, from its filtered distribution."""
    if not drawn:
        return []
    picked = logits if len(drawn) == len(rows) else logits[drawn]
    chosen = [rows[i] for i in drawn]
    uniforms = [keyed_uniform(row.state.seed, row.position) for row in chosen]
    weights = _filtered_weights([row.state.params for row in chosen], picked)
    # float64 so that the sum over a large vocabulary keeps the smallest probabilities.
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    target = target * cumulative[:, -1:]
    # The first token whose cumulative weight exceeds the target has weight above zero.
    ids: list[int] = torch.searchsorted(cumulative, target, right=True)[:, 0].tolist()
    return ids


def _filtered_weights(params: list[SamplingParams], logits: Tensor) -> Tensor:
    """Return unnormalised probabilities [rows, vocab], 0 where a filter drops the token."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    scaled = logits / column([p.temperature for p in params])
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()  # the likeliest token weighs 1
    if any(p.min_p > 0 for p in params):
        weights = weights.masked_fill(weights < column([p.min_p for p in params]), 0.0)
    vocab = weights.shape[1]
    top_ks = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
    if min(top_ks) < vocab:
        weights = _keep_top_k(weights, top_ks)
    if any(p.top_p < 1 for p in params):
        weights = _keep_top_p(weights, [p.top_p for p in params])
    return weights


def _keep_top_k(weights: Tensor, top_ks: list[int]) -> Tensor:
    limited = [k for k in top_ks if k < weights.shape[1]]
    top = weights.topk(max(limited)).values
    at = torch.tensor([min(k, top.shape[1]) - 1 for k in top_ks], device=weights.device)
    edge = top.gather(1, at[:, None])
    unlimited = torch.tensor([k == weights.shape[1] for k in top_ks], device=weights.device)
    edge = edge.masked_fill(unlimited[:, None], 0.0)
    return weights.masked_fill(weights < edge, 0.0)


def _keep_top_p(weights: Tensor, top_ps: list[float]) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities reach top_p; at least one."""
    share = torch.tensor(top_ps, dtype=torch.float64, device=weights.device)[:, None]
    wanted = weights.sum(-1, keepdim=True, dtype=torch.float64) * share
    first = min(_TOP_P_FIRST, weights.shape[1])
    top = weights.topk(first).values
    cumulative = top.cumsum(-1, dtype=torch.float64)
    if first < weights.shape[1] and bool((cumulative[:, -1:] < wanted).any()):
        top = weights.sort(-1, descending=True).values
        cumulative = top.cumsum(-1, dtype=torch.float64)
    at = torch.searchsorted(cumulative, wanted).clamp_(max=top.shape[1] - 1)
    edge = top.gather(1, at).masked_fill(share >= 1, 0.0)
    return weights.masked_fill(weights < edge, 0.0)


def top_logprobs(
    logits: Tensor, token_ids: list[int], top_ks: list[int]
) -> list[list[tuple[int, float]]]:
    """Return for each row the logprob of its token, then of its k most likely ones.

    logits: [rows, vocab], float32, as the model gave them.
    """
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(max(top_ks), logprobs.shape[1]))
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    out = []
    for token_id, logprob, k, top_ids, top_values in zip(
        token_ids, chosen[:, 0].tolist(), top_ks, ids.tolist(), values.tolist(), strict=True
    ):
        out.append([(token_id, logprob), *zip(top_ids[:k], top_values[:k], strict=True)])
    return out
