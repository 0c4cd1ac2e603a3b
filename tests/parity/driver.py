"""Drives a ModelRunner without the engine: sequences in, StepBatches made by hand, tokens out.

Blocks are given out in a scrambled order, so that nothing can rely on neighbouring slots.
"""

import random
from dataclasses import dataclass, field

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState, Span, StepBatch
from quickmatch.engine.runner import ModelRunner

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class DrivenSequence:
    """A sequence with its blocks; `num_stored` tokens have their KV in the cache."""

    state: SampleState
    blocks: list[int]
    adapter_row: int = -1
    num_stored: int = 0

    @property
    def tokens(self) -> list[int]:
        """Prompt and output."""
        return self.state.prompt_token_ids + self.state.output_token_ids


@dataclass
class Driver:
    """Hands out blocks and runs steps."""

    runner: ModelRunner
    free_blocks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free_blocks = list(range(self.runner.num_blocks))
        random.Random(0).shuffle(self.free_blocks)

    def start(
        self,
        prompt: list[int],
        *,
        max_len: int,
        params: SamplingParams = GREEDY,
        seed: int = 0,
        adapter: str | None = None,
        shared: DrivenSequence | None = None,
        num_shared_tokens: int = 0,
    ) -> DrivenSequence:
        """Make a sequence with blocks for max_len tokens; the first ones may be another's."""
        size = self.runner.block_size
        blocks = shared.blocks[: num_shared_tokens // size] if shared else []
        needed = -(-max_len // size) - len(blocks)
        blocks = blocks + [self.free_blocks.pop() for _ in range(needed)]
        row = -1 if adapter is None else self.runner.adapter_row(adapter)
        stored = num_shared_tokens if shared else 0
        return DrivenSequence(SampleState(params, seed, prompt), blocks, row, stored)

    def step(self, sequences: list[DrivenSequence], chunk: int | None = None) -> None:
        """Run one step over the sequences: what is not stored yet, at most `chunk` tokens."""
        batch = self.batch(sequences, chunk)
        result = self.runner.run(batch)
        for sequence, span, sampled in zip(sequences, batch.spans, result.sampled, strict=True):
            sequence.num_stored += span.num_tokens
            if sampled is not None:
                sequence.state.output_token_ids += sampled.token_ids

    def batch(self, sequences: list[DrivenSequence], chunk: int | None = None) -> StepBatch:
        """Make the StepBatch of one step."""
        size = self.runner.block_size
        batch = StepBatch([], [], [], [])
        for sequence in sequences:
            tokens = sequence.tokens
            first = sequence.num_stored
            end = min(len(tokens), first + chunk) if chunk else len(tokens)
            batch.spans.append(
                Span(
                    start=len(batch.token_ids),
                    num_tokens=end - first,
                    context_len=first,
                    block_table=sequence.blocks[: -(-end // size)],
                    adapter_row=sequence.adapter_row,
                    sample=sequence.state if end == len(tokens) else None,
                )
            )
            batch.token_ids += tokens[first:end]
            batch.positions += range(first, end)
            batch.slots += [sequence.blocks[i // size] * size + i % size for i in range(first, end)]
        return batch

    def generate(
        self, sequences: list[DrivenSequence], num_tokens: int, chunk: int | None = None
    ) -> list[list[int]]:
        """Step until every sequence has num_tokens of output; they end at different steps."""
        while running := [s for s in sequences if len(s.state.output_token_ids) < num_tokens]:
            self.step(running, chunk)
        return [sequence.state.output_token_ids for sequence in sequences]
