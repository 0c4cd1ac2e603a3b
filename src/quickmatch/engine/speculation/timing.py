"""Made-up steps of given sizes, to measure what such steps cost on this machine."""

from collections.abc import Callable, Iterable, Iterator

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState, Span, StepBatch
from quickmatch.engine.speculation.tree import DraftTree, Source

CONTEXT_TOKENS = 384  # of each sequence: how much it reads matters, what it holds does not
_TIMES, _TRIES = 2, 5  # that each size is timed, and tried to be
_QUIET = 1.2  # times that the smallest step may take longer or less long right behind than before


def timed_steps(
    time_step: Callable[[int, int], float], points: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, float]]:
    """Yield (sequences, rows, seconds), some for each point; those that do not fit are left out.

    Each is timed between two of the smallest step. What counts is how sizes compare, and on a
    machine that others use too, all may take half as long again a moment later: so seconds are
    told as if the smallest step took what it took first.
    """
    usual_s = 0.0
    for num_seqs, num_rows in points:
        try:
            time_step(num_seqs, num_rows)  # the first of a size makes kernels
            before_s = time_step(1, 1)
        except ConfigError:  # too few KV blocks
            continue
        num_told = 0
        for _ in range(_TRIES):
            seconds, after_s = time_step(num_seqs, num_rows), time_step(1, 1)
            usual_s = usual_s or after_s
            if max(before_s, after_s) <= _QUIET * min(before_s, after_s):
                num_told += 1
                yield num_seqs, num_rows, seconds * 2 * usual_s / (before_s + after_s)
            before_s = after_s
            if num_told == _TIMES:
                break


def timing_batch(
    num_seqs: int, num_rows: int, num_blocks: int, block_size: int, max_model_len: int
) -> StepBatch:
    """Return a step of num_seqs sequences with num_rows rows in all: last tokens and chains.

    Sequences may share blocks where there are too few, since nothing is read back from them.
    Raises ConfigError if one sequence alone does not fit.
    """
    most = -(-num_rows // num_seqs)
    table_len = min(-(-(CONTEXT_TOKENS + most) // block_size), num_blocks)
    context = min(table_len * block_size, max_model_len) - most
    if context < 0:
        raise ConfigError(
            f"{num_blocks} KV blocks and a context of {max_model_len} tokens do not hold a draft "
            f"of {most} tokens"
        )
    batch = StepBatch([], [], [], [])
    greedy = SamplingParams(temperature=0.0)
    for index in range(num_seqs):
        rows = num_rows // num_seqs + (index < num_rows % num_seqs)
        first = (index * table_len) % max(1, num_blocks - table_len + 1)
        table = list(range(first, first + table_len))
        nodes = rows - 1
        tree = DraftTree.chain([0] * nodes, [1.0] * nodes, Source.HEAD) if nodes else None
        state = SampleState(greedy, 0, [0])
        batch.spans.append(Span(len(batch.token_ids), rows, context, table, -1, state, tree))
        batch.token_ids += [0] * rows
        batch.positions += range(context, context + rows)
        batch.slots += range(first * block_size + context, first * block_size + context + rows)
    return batch
