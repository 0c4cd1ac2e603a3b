"""Which of the target's tokens a head can propose.

Owns the choice. A head's product with its vocabulary is most of a draft step's cost, and answers of
one workload use few of the target's tokens, so the vocabulary is those that the answers hold, with
room for as many again, filled with what the prompts hold most.
"""

from collections import Counter
from collections.abc import Sequence

from quickmatch.core.errors import ConfigError
from quickmatch.tuning.draft_data import TokenSequence

_MULTIPLE = 128  # rows of a matrix that kernels like
_MIN_TOKENS = 512
_MAX_TOKENS = 4096
_MAX_SHARE = 4  # a large vocabulary gets up to a quarter of itself


def draft_vocab(
    sequences: Sequence[TokenSequence], vocab_size: int, asked: int | None
) -> tuple[list[int], str]:
    """Return the target's ids of the draft tokens, ascending, and why so many.

    Tokens of outputs come first, most frequent first, then those of prompts, then the rest by id.
    Raises ConfigError if more are asked for than there are.
    """
    outputs = Counter(t for s in sequences for t in s.output)
    prompts = Counter(t for s in sequences for t in s.prompt)
    if asked is not None and asked > vocab_size:
        raise ConfigError(
            f"draft_vocab_size is {asked}, but the target's vocabulary has {vocab_size}; lower it"
        )
    size = asked or _auto_size(len(outputs), vocab_size)
    ranked = sorted(range(vocab_size), key=lambda t: (-outputs[t], -prompts[t], t))
    chosen = sorted(ranked[:size])
    covered = sum(outputs[t] for t in chosen) / max(1, outputs.total())
    reason = f"{len(outputs)} of {vocab_size} tokens occur in the answers; {covered:.2%} covered"
    return chosen, reason


def _auto_size(num_seen: int, vocab_size: int) -> int:
    wanted = max(_MIN_TOKENS, -(-2 * num_seen // _MULTIPLE) * _MULTIPLE)
    return min(wanted, max(_MAX_TOKENS, vocab_size // _MAX_SHARE), vocab_size)
