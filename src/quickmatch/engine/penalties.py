"""Penalties on tokens that were there before: counted once, updated token by token.

A running sequence's history is kept between steps, so that a step costs what is new and not
what was said so far. A sequence that is not in a step loses its history (it ended, or was
preempted) and is counted anew if it returns. Keyed by the SampleState's identity, which the
history holds on to.

Sources: frequency and presence as OpenAI's API defines them, over the output; repetition as
CTRL (arXiv 1909.05858) and transformers have it, over prompt and output.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState


class _History:
    """The distinct tokens of one sequence, and how often each is in the output."""

    def __init__(self, state: SampleState) -> None:
        self.state = state
        self.num_counted = 0
        self._index_of: dict[int, int] = {}
        self._ids: list[int] = []
        self._counts: list[int] = []
        self._ids_tensor = torch.empty(0, dtype=torch.int64)
        self._counts_tensor = torch.empty(0)
        for token_id in state.prompt_token_ids:
            self._see(token_id, 0)

    def _see(self, token_id: int, count: int) -> None:
        index = self._index_of.setdefault(token_id, len(self._ids))
        if index == len(self._ids):
            self._ids.append(token_id)
            self._counts.append(count)
        else:
            self._counts[index] += count

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the distinct ids [n] and their counts in the output [n], up to date."""
        new = self.state.output_token_ids[self.num_counted :]
        for token_id in new:
            self._see(token_id, 1)
        self.num_counted += len(new)
        if len(self._ids) > len(self._ids_tensor) or not self.num_counted:
            self._ids_tensor = torch.tensor(self._ids, dtype=torch.int64)
            self._counts_tensor = torch.tensor(self._counts, dtype=torch.float32)
        else:
            for token_id in new:
                index = self._index_of[token_id]
                self._counts_tensor[index] = self._counts[index]
        return self._ids_tensor, self._counts_tensor


class PenaltyHistories:
    """The histories of the sequences of the last step."""

    def __init__(self) -> None:
        self._by_state: dict[int, _History] = {}

    def apply(self, state: SampleState, path: Sequence[int], logits: Tensor) -> None:
        """Penalise in place, as if `path` were in the output too. logits: [vocab], float32."""
        history = self._by_state.get(id(state))
        if history is None or history.num_counted > len(state.output_token_ids):
            history = self._by_state[id(state)] = _History(state)
        ids, counts = history.tensors()
        if path:
            ids, counts = _with_path(ids, counts, path)
        _penalise(logits, ids.to(logits.device), counts.to(logits.device), state.params)

    def keep_only(self, states: list[SampleState]) -> None:
        """Forget the sequences that are not among these."""
        if self._by_state:
            kept = {id(state) for state in states}
            self._by_state = {k: h for k, h in self._by_state.items() if k in kept}


def _with_path(ids: Tensor, counts: Tensor, path: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return distinct ids and counts with a draft's tokens counted in; the inputs stay."""
    counted = sorted(Counter(path).items())
    distinct = torch.tensor([token_id for token_id, _ in counted], dtype=torch.int64)
    occurrences = torch.tensor([count for _, count in counted], dtype=counts.dtype)
    is_known = torch.isin(ids, distinct)
    counts = counts.clone()
    at = torch.searchsorted(distinct, ids[is_known])
    counts[is_known] += occurrences[at]
    is_new = ~torch.isin(distinct, ids)
    return (
        torch.cat([ids, distinct[is_new]]),
        torch.cat([counts, occurrences[is_new]]),
    )


def _penalise(logits: Tensor, ids: Tensor, counts: Tensor, params: SamplingParams) -> None:
    """logits: [vocab], changed in place; ids, counts: [distinct tokens so far]."""
    seen = logits.index_select(0, ids)
    if params.repetition_penalty != 1.0:
        penalty = params.repetition_penalty
        seen = torch.where(seen > 0, seen / penalty, seen * penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        seen -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    logits.index_copy_(0, ids, seen)
