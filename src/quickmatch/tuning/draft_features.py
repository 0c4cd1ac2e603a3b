"""What a head is trained on, computed anew from token ids by the target itself.

Owns the pass of the target over whole sequences (with its adapter, in the number format that it is
served in) and what is kept of it: the hidden states that the head reads, and where an answer is,
the likeliest of the tokens that the head can propose. Nothing of it is stored: at 8 billion
parameters the states of a token are 24 KiB, its id 4 bytes.

The soft targets are the 64 likeliest tokens of the draft vocabulary, their probabilities made to
sum to one. A position whose likeliest token the head cannot propose is marked, to be left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.runner import ModelRunner
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_head import HeadBatch
from quickmatch.tuning.draft_parts import RowBudget, Sight

NUM_SOFT_TARGETS = 64
MAX_LOGITS = 1 << 26  # of a pass of the target: 256 MiB of float32, held twice


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens [begin, end) of a sequence, those before in the KV memory already."""

    sequence: TokenSequence
    sight: Sight
    begin: int
    end: int


class TargetFeatures:
    """The target as a teacher of heads. The runner's KV memory is its own while it lives."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        adapter_row: int,
        aux_layers: tuple[int, ...],
        draft_ids: Tensor,
        budget: RowBudget,
    ) -> None:
        self.budget = budget
        self._runner = runner
        self._adapter_row = adapter_row
        self._aux_layers = aux_layers
        self._draft_ids = draft_ids.to(runner.device)
        self._draft_of = torch.full((runner.vocab_size,), -1, device=runner.device)
        self._draft_of[self._draft_ids] = torch.arange(len(draft_ids), device=runner.device)

    def batch(self, sequences: Sequence[TokenSequence]) -> HeadBatch:
        """Run the target over one part of a batch, as the budget splits it.

        A sequence has at least a prompt token and two of output. The target reads from its
        beginning also where the head does not.
        """
        sights = [self.budget.sight(s) for s in sequences]
        seen: list[Tensor] = []  # hidden states of what the head sees
        targets: list[tuple[Tensor, Tensor, Tensor]] = []
        for pieces in self._passes(sequences):
            step, rows, answer_rows = self._step(pieces)
            # Of a piece without an answer it takes a row's logits too, and throws them away.
            states, logits = self._runner.features(step, self._aux_layers, answer_rows or [0])
            seen.append(states[rows])
            targets.append(self._targets(logits[: len(answer_rows)]))
        aux = torch.cat(seen)
        ids, probs, best = (torch.cat(parts) for parts in zip(*targets, strict=True))
        nums = [sight.num_drafts for sight in sights]
        next_ids = [
            torch.tensor(s.token_ids[sight.start + 1 : sight.stop])
            for s, sight in zip(sequences, sights, strict=True)
        ]
        device = aux.device
        with torch.inference_mode(False):  # autograd refuses tensors of inference mode
            return HeadBatch(
                aux=_pad([a.float() for a in torch.split(aux, [len(n) for n in next_ids])]),
                next_ids=_pad(next_ids).to(device),
                offset=torch.tensor([sight.start for sight in sights], device=device),
                first=torch.tensor([sight.num_prompt - 1 for sight in sights], device=device),
                num_drafts=torch.tensor(nums, device=device),
                target_ids=_pad(list(torch.split(ids, nums))),
                target_probs=_pad(list(torch.split(probs, nums))),
                target_best=_pad(list(torch.split(best, nums)), -1),
            )

    def _passes(self, sequences: Sequence[TokenSequence]) -> list[list[_Piece]]:
        """Return what the target reads in each pass: all, or if it is too much piece by piece."""
        sights = [self.budget.sight(sequence) for sequence in sequences]
        max_answer_rows = max(1, MAX_LOGITS // self._runner.vocab_size)
        if (
            sum(self._num_blocks(sight.stop) for sight in sights) <= self._runner.num_blocks
            and sum(sight.stop for sight in sights) <= self.budget.max_rows
            and sum(sight.num_drafts for sight in sights) <= max_answer_rows
        ):
            both = zip(sequences, sights, strict=True)
            return [[_Piece(sequence, sight, 0, sight.stop) for sequence, sight in both]]
        length = min(self.budget.max_rows, max_answer_rows)
        return [
            [_Piece(sequence, sight, begin, min(sight.stop, begin + length))]
            for sequence, sight in zip(sequences, sights, strict=True)
            for begin in range(0, sight.stop, length)
        ]

    def _step(self, pieces: list[_Piece]) -> tuple[StepBatch, list[int], list[int]]:
        """Lay pieces into the KV memory one behind the other.

        Returns the target's step, its rows that the head sees, and those that draft tokens follow.
        """
        step, size, block = StepBatch([], [], [], []), self._runner.block_size, 0
        rows, answer_rows = list[int](), list[int]()
        for piece in pieces:
            sequence, sight, begin, end = piece.sequence, piece.sight, piece.begin, piece.end
            num_blocks = self._num_blocks(sight.stop)
            table = list(range(block, block + num_blocks))
            block += num_blocks
            start = len(step.token_ids)
            step.spans.append(Span(start, end - begin, begin, table, self._adapter_row, None))
            step.token_ids += sequence.token_ids[begin:end]
            step.positions += range(begin, end)
            step.slots += range(table[0] * size + begin, table[0] * size + end)
            last = min(end, sight.stop - 1)  # the row of the last token of all foretells nothing
            rows += range(start - begin + max(begin, sight.start), start - begin + last)
            first = max(begin, len(sequence.prompt))
            answer_rows += range(start - begin + first, start - begin + last)
        return step, rows, answer_rows

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._runner.block_size)

    @torch.inference_mode()
    def _targets(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return soft targets in draft tokens, and the likeliest token. logits: [n, vocab]."""
        logits = logits.float()  # argmax is some times faster on float32 than on bfloat16
        best = self._draft_of[logits.argmax(-1)]
        own = logits.index_select(1, self._draft_ids)
        values, ids = own.topk(min(NUM_SOFT_TARGETS, own.shape[1]), dim=-1)
        # The mass beyond the 64 is left out of the normalisation's sum as well: it is nothing
        # where the target knows what it says, and where it does not, no draft will hold.
        return ids, torch.softmax(values, -1), best


def _pad(parts: list[Tensor], value: float = 0) -> Tensor:
    return pad_sequence(parts, batch_first=True, padding_value=value)
