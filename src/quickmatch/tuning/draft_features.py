"""What a head is trained on, computed anew from token ids by the target itself.

Owns the pass of the target over whole sequences (with its adapter, in the number format that it is
served in) and what is kept of it: the hidden states that the head reads, and where an answer is,
the likeliest of the tokens that the head can propose. Nothing of it is stored: at 8 billion
parameters the states of a token are 24 KiB, its id 4 bytes.

The soft targets are the 64 likeliest tokens of the draft vocabulary, their probabilities made to
sum to one. A position whose likeliest token the head cannot propose is marked, to be left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from quickmatch.core.errors import ConfigError
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.runner import ModelRunner
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_head import HeadBatch

NUM_SOFT_TARGETS = 64


class TargetFeatures:
    """The target as a teacher of heads. The runner's KV memory is its own while it lives."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        adapter_row: int,
        aux_layers: tuple[int, ...],
        draft_ids: Tensor,
    ) -> None:
        self._runner = runner
        self._adapter_row = adapter_row
        self._aux_layers = aux_layers
        self._draft_ids = draft_ids.to(runner.device)
        self._draft_of = torch.full((runner.vocab_size,), -1, device=runner.device)
        self._draft_of[self._draft_ids] = torch.arange(len(draft_ids), device=runner.device)

    def batch(self, sequences: Sequence[TokenSequence]) -> HeadBatch:
        """Run the target over sequences of at least a prompt token and two of output.

        Raises ConfigError if they do not fit the KV memory together.
        """
        lengths = [len(s) for s in sequences]
        firsts = [len(s.prompt) - 1 for s in sequences]
        nums = [len(s.output) - 1 for s in sequences]
        step = self._step(sequences)
        rows = [
            row
            for span, first, num in zip(step.spans, firsts, nums, strict=True)
            for row in range(span.start + first + 1, span.start + first + 1 + num)
        ]
        aux, logits = self._runner.features(step, self._aux_layers, rows)
        ids, probs, best = self._targets(logits)
        next_ids = [torch.tensor(s.token_ids[1:]) for s in sequences]
        device = aux.device
        with torch.inference_mode(False):  # autograd refuses tensors of inference mode
            return HeadBatch(
                aux=_pad([a[:-1].float() for a in torch.split(aux, lengths)]),
                next_ids=_pad(next_ids).to(device),
                first=torch.tensor(firsts, device=device),
                num_drafts=torch.tensor(nums, device=device),
                target_ids=_pad(list(torch.split(ids, nums))),
                target_probs=_pad(list(torch.split(probs, nums))),
                target_best=_pad(list(torch.split(best, nums)), -1),
            )

    def _step(self, sequences: Sequence[TokenSequence]) -> StepBatch:
        """Lay the sequences into the KV memory one behind the other."""
        step, size, block = StepBatch([], [], [], []), self._runner.block_size, 0
        for sequence in sequences:
            token_ids = sequence.token_ids
            num_blocks = -(-len(token_ids) // size)
            table = list(range(block, block + num_blocks))
            block += num_blocks
            if block > self._runner.num_blocks:
                raise ConfigError(
                    f"a batch of {len(sequences)} sequences does not fit the target's KV memory of "
                    f"{self._runner.num_blocks * size} tokens; lower batch_size"
                )
            start = len(step.token_ids)
            step.spans.append(Span(start, len(token_ids), 0, table, self._adapter_row, None))
            step.token_ids += token_ids
            step.positions += range(len(token_ids))
            step.slots += range(table[0] * size, table[0] * size + len(token_ids))
        return step

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
