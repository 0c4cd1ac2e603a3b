"""Rows from samples, and the bars of the benchmark on a GPU.

weights read at B=1 ÷ copy bandwidth, bf16   ≥ 0.8
decode and throughput, every batch           ≥ 1 × transformers' continuous batching
first token of every prompt                  ≤ 1 × (a time)
attention of a prompt of 8K, 16K, 32K        ≤ 1 × SDPA (a time)
32 adapters in one batch ÷ base alone        ≥ 0.9
"""

from collections.abc import Mapping, Sequence

from benchmarks.engine.contenders import OURS
from benchmarks.engine.figures import batch_name, first_token_name
from benchmarks.engine.plan import ShapePlan
from benchmarks.engine.running import Running
from benchmarks.harness import Samples
from benchmarks.rows import Bar, Row, against, at_least, at_most, single

PEER = "transformers-batching"
SDPA = "sdpa"  # torch's scaled_dot_product_attention
CHECKS = "tests that passed on the card"
_AS_FAST = at_least(1.0, times_peer=True)
_AS_SOON = at_most(1.0, times_peer=True)


def rate_rows(
    of_shape: ShapePlan, precision: str, samples: Samples, group: Mapping[str, Running]
) -> list[Row]:
    """Every rate and time, beside the peer where it has the precision."""
    rows: list[Row] = []
    peer = group.get(PEER)
    for name, unit, bar in _measures(of_shape):
        ours = samples[OURS].get(name, [])
        label = f"{of_shape.shape.name} {precision}: {name}"
        if peer is None:
            rows.append(single(label, ours, unit))
        elif peer.reason:
            missing = {PEER: peer.reason}
            rows += against(label, unit, ours, {}, bars={PEER: bar}, missing=missing)
        else:
            rows += against(label, unit, ours, {PEER: samples[PEER][name]}, bars={PEER: bar})
    return rows


def prefill_rows(shape: str, length: int, taken: Mapping[str, Sequence[float]]) -> list[Row]:
    """One prompt's attention in one layer, beside SDPA."""
    label = f"{shape} bf16: attention of {length} tokens, one layer"
    return against(label, "ms", taken[OURS], {SDPA: taken[SDPA]}, bars={SDPA: _AS_SOON})


def missing_row(shape: str, precision: str, reason: str) -> Row:
    """A precision that this card does not have."""
    return Row(measure=f"{shape} {precision}", value=None, unit="", note=reason)


def _measures(of_shape: ShapePlan) -> list[tuple[str, str, Bar]]:
    sizes = [batch.size for batch in of_shape.batches]
    return [
        *((batch_name(kind, size), "tokens/s", _AS_FAST)
          for kind in ("decode", "throughput") for size in sizes),
        *((first_token_name(length), "ms", _AS_SOON) for length in of_shape.prompt_lens),
    ]  # fmt: skip
