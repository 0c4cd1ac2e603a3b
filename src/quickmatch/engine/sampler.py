"""Chooses each row's next token from its logits, as its SamplingParams ask.

Order, as vLLM has it: logit_bias; penalties (repetition over prompt and output, as in
transformers; frequency and presence over the output, as OpenAI defines them); tokens that would
end the text too early masked; then for rows that sample: temperature, min_p, top_k, top_p.

Keyed choice. A row's token is the inverse of its cumulative distribution, over the vocabulary in
order of id, at one uniform number that splitmix64 makes of (seed, position of the output token).
So the choice is a function of the row's logits and its key: not of the batch, nor of how often
or in what order steps were taken. Over the vocabulary's order and not the sorted one, a change
of the logits by rounding moves the choice only where it moves the distribution.

Ties at the edge of top_k and top_p are kept. A batch that is greedy throughout takes an argmax
and nothing else. logprobs are those of the model's raw logits, before any of the above.
"""

import torch
from torch import Tensor

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import Sampled, SampleState
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


class Sampler:
    """Samples for a step's rows. Keeps only what penalties would otherwise count anew."""

    def __init__(self) -> None:
        self._histories = PenaltyHistories()

    def sample(self, states: list[SampleState], logits: Tensor) -> list[Sampled]:
        """Choose a token a row. logits: [len(states), vocab], any float dtype; not changed."""
        logits = logits.float()  # argmax is some times faster on float32 than on bfloat16
        adjusted = self._adjust(states, logits)
        greedy_ids: list[int] = adjusted.argmax(-1).tolist()
        sampled_rows = [i for i, state in enumerate(states) if not state.params.is_greedy]
        for row, token_id in zip(sampled_rows, _draw(states, sampled_rows, adjusted), strict=True):
            greedy_ids[row] = token_id
        out = [Sampled(token_id) for token_id in greedy_ids]
        _fill_logprobs(states, logits, out)
        return out

    def _adjust(self, states: list[SampleState], logits: Tensor) -> Tensor:
        """Return the logits with biases, penalties and early ends applied, or the input."""
        biased = [i for i, state in enumerate(states) if state.params.logit_bias]
        penalised = [i for i, state in enumerate(states) if state.params.has_penalties]
        early = [i for i, state in enumerate(states) if _is_early(state)]
        if not (biased or penalised or early):
            return logits
        adjusted = logits.clone()
        for row in biased:
            _add_bias(adjusted[row], states[row].params)
        if penalised:
            self._histories.apply([states[row] for row in penalised], penalised, adjusted)
        for row in early:
            state = states[row]
            ends = [*state.eos_token_ids, *state.params.stop_token_ids]
            adjusted[row, [t for t in ends if 0 <= t < adjusted.shape[1]]] = -torch.inf
        return adjusted


def _is_early(state: SampleState) -> bool:
    return len(state.output_token_ids) < state.params.min_tokens


def _add_bias(row: Tensor, params: SamplingParams) -> None:
    pairs = [(t, b) for t, b in params.logit_bias.items() if 0 <= t < len(row)]
    ids = torch.tensor([t for t, _ in pairs], dtype=torch.int64, device=row.device)
    biases = torch.tensor([b for _, b in pairs], dtype=torch.float32, device=row.device)
    row.index_add_(0, ids, biases)


def _draw(states: list[SampleState], rows: list[int], logits: Tensor) -> list[int]:
    """Return a token for each of `rows`, drawn from its filtered distribution."""
    if not rows:
        return []
    picked = logits if len(rows) == len(states) else logits[rows]
    chosen = [states[row] for row in rows]
    uniforms = [keyed_uniform(s.seed, len(s.output_token_ids)) for s in chosen]
    weights = _filtered_weights([s.params for s in chosen], picked)
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


def _fill_logprobs(states: list[SampleState], logits: Tensor, out: list[Sampled]) -> None:
    rows = [i for i, state in enumerate(states) if state.params.logprobs is not None]
    if not rows:
        return
    logprobs = logits[rows].log_softmax(-1)
    most = max(states[row].params.logprobs or 0 for row in rows)
    values, ids = logprobs.topk(min(most, logprobs.shape[1]))
    chosen = logprobs.gather(1, torch.tensor([[out[r].token_id] for r in rows]).to(ids.device))
    for row, token, top_ids, top_values in zip(
        rows, chosen[:, 0].tolist(), ids.tolist(), values.tolist(), strict=True
    ):
        k = states[row].params.logprobs or 0
        top = list(zip(top_ids[:k], top_values[:k], strict=True))
        out[row].logprobs = [(out[row].token_id, token), *top]
