"""A contender's turn: all batches and first tokens once, with prompts that change every turn.

    throughput   new tokens ÷ the whole time, prompts included: what a user of a batch sees
    decode       less a one-token call on such prompts: (batch × (new − 1)) ÷ (whole − first)
    first token  that one-token call, of one prompt

Every contender gets the same prompts of made-up token ids in the same turn, extends them greedily
by exactly the asked number of tokens, and is timed from the call to the last token.
"""

import random
from statistics import median

from benchmarks.engine.figures import batch_name, first_token_name, long_name
from benchmarks.engine.plan import ShapePlan
from benchmarks.engine.running import Running
from benchmarks.harness import Samples

_WARM_BATCH, _WARM_TOKENS = 8, 4
_MAX_LONG_PROMPT_S = 60.0
_GROWTH = 2.0  # of the seconds a token from 1,024 to 8,192: attention's share grows


class Turns:
    """A call of it is one turn; nothing is returned once the contender has failed."""

    def __init__(self, running: Running, of_shape: ShapePlan, seed: int) -> None:
        self._running, self._plan = running, of_shape
        self._rng = random.Random(seed)

    def __call__(self) -> dict[str, float]:
        """Take one turn; return measure -> value."""
        values: dict[str, float] = {}
        # Not counted: while others ran, its caches went cold and the system may have reclaimed
        # its mapped pages, which cost the first call up to a second.
        self._running.generate(self._prompts(_WARM_BATCH, 16), _WARM_TOKENS)
        for batch in self._plan.batches:
            # Drawn for all, taken by those that can: the next prompts are the same for everyone.
            prompts = [self._prompts(batch.size, batch.prompt_len) for _ in range(2)]
            if batch.size > self._running.max_batch:
                note = f"started with {self._running.max_batch} slots"
                for kind in ("throughput", "decode"):
                    self._running.notes[batch_name(kind, batch.size)] = note
                continue
            first_s = self._running.generate(prompts[0], 1)
            whole_s = self._running.generate(prompts[1], batch.new_tokens)
            if first_s is None or whole_s is None:
                return {}
            values[batch_name("throughput", batch.size)] = batch.size * batch.new_tokens / whole_s
            # A disturbed first call can take longer than all of the next one: bound what it counts.
            decode_s = whole_s - min(first_s, whole_s / 2)
            rate = batch.size * (batch.new_tokens - 1) / decode_s
            values[batch_name("decode", batch.size)] = rate
        for length in self._plan.prompt_lens:
            first_s = self._running.generate(self._prompts(1, length), 1)
            if first_s is None:
                return {}
            values[first_token_name(length)] = first_s * 1e3
        return values

    def _prompts(self, batch: int, length: int) -> list[list[int]]:
        return made_up_prompts(self._rng, self._plan.shape.vocab_size, batch, length)


def long_prompt(running: Running, of_shape: ShapePlan, samples: Samples, seed: int) -> float | None:
    """Return the seconds to the first token of the long prompt, once; None where it is left out.

    A contender that would take more than a minute, by its time for 1,024 tokens, is not asked.
    """
    length = of_shape.long_prompt_len
    taken = samples.get(running.name, {}).get(first_token_name(of_shape.prompt_lens[-1]))
    if length is None or not taken or not running.is_running:
        return None
    expected_s = median(taken) / 1e3 * length / of_shape.prompt_lens[-1] * _GROWTH
    if expected_s > _MAX_LONG_PROMPT_S:
        running.notes[long_name(of_shape)] = f"would take about {expected_s:.0f} s"
        return None
    prompts = made_up_prompts(random.Random(seed), of_shape.shape.vocab_size, 1, length)
    return running.generate(prompts, 1)


def made_up_prompts(
    rng: random.Random, vocab_size: int, batch: int, length: int
) -> list[list[int]]:
    """Draw prompts of one length; the first ids are special tokens."""
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for _ in range(batch)]
