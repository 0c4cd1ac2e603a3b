"""Rows from samples: what is told of whom, and the bars of the benchmark.

Bars against every peer of the same precision, so against the best of them, by the median of the
ratios turn by turn; and those of our engine alone:

    decode, B=1                               ≥ 1 × peer
    throughput, B=8 and B=32                  ≥ 1.2 × peer
    first token of every prompt               ≤ 1 × peer (a time)
    eight rows of one sequence ÷ one row      ≤ 1.3
    32 adapters in one batch ÷ base alone     ≥ 0.9, with 100 in memory
    a new adapter loaded and its first token  ≤ 200 ms
    qwen3-600m in int4                        ≥ 0.8 of the copy bandwidth while decoding, B=1
                                              ≤ 0.3 of bf16's weight memory
    `quickmatch serve` to the first answer    ≤ 3 s; of qwen3-600m saved in int4 ≤ 5 s
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.engine.contenders import OURS
from benchmarks.engine.plan import ShapePlan
from benchmarks.engine.running import Running
from benchmarks.harness import Samples
from benchmarks.models import QWEN3_600M
from benchmarks.rows import Bar, Row, against, at_least, at_most, single

EIGHT_ROWS = "step of 8 rows ÷ of 1 row, one sequence"
ADAPTERS = "32 of 100 adapters in a batch ÷ base alone, B=32"
NEW_ADAPTER = "new adapter to first token, 32-token prompt"
STARTUP = "`quickmatch serve` to first answer, shipped model"
SAVED_STARTUP = "`quickmatch serve` to first answer, saved folder"
_OWN_BARS = {
    EIGHT_ROWS: at_most(1.3),
    ADAPTERS: at_least(0.9),
    NEW_ADAPTER: at_most(200.0),
    SAVED_STARTUP: at_most(5.0),
}
_OWN_UNITS = {NEW_ADAPTER: "ms", SAVED_STARTUP: "s"}
STRICT = (QWEN3_600M.name, "int4")
_AS_FAST = at_least(1.0, times_peer=True)
_FASTER = at_least(1.2, times_peer=True)
_AS_SOON = at_most(1.0, times_peer=True)


def batch_name(kind: str, size: int) -> str:
    """Return the name that a rate bears in samples and rows."""
    return f"{kind}, B={size}"


def first_token_name(length: int) -> str:
    """Return the name of the time to first token."""
    return f"first token, {length}-token prompt"


def long_name(of_shape: ShapePlan) -> str:
    """Return the name of the one that is measured once."""
    return first_token_name(of_shape.long_prompt_len or 0)


def peer_rows(
    of_shape: ShapePlan, precision: str, samples: Samples, group: Mapping[str, Running]
) -> list[Row]:
    """Every measure beside every peer; what was left out says why."""
    rows: list[Row] = []
    for name, unit, bar in _measures(of_shape):
        peers: dict[str, Sequence[float]] = {}
        missing: dict[str, str] = {}
        for one in group.values():
            if one.name == OURS:
                continue
            values = samples.get(one.name, {}).get(name, [])
            if one.reason or not values:
                # What failed on the way has turns that do not pair with ours.
                missing[one.name] = one.notes.get(name) or one.reason
            else:
                peers[one.name] = values
        bars = {} if bar is None else dict.fromkeys([*peers, *missing], bar)
        label = f"{of_shape.shape.name} {precision}: {name}"
        ours = samples[OURS].get(name, [])
        rows += against(label, unit, ours, peers, bars=bars, missing=missing)
    return rows


def own_rows(shape: str, precision: str, own: Mapping[str, Sequence[float]]) -> list[Row]:
    """What only our engine is measured by."""
    return [
        single(f"{shape} {precision}: {name}", values, _OWN_UNITS.get(name, ""), _OWN_BARS[name])
        for name, values in own.items()
    ]


def bandwidth_row(
    shape: str,
    precision: str,
    values: Mapping[str, Sequence[float]],
    info: Mapping[str, Any],
    copy_gb_per_s: float,
    *,
    judged: bool,
) -> Row:
    """The weights that a step reads × steps a second, of what the machine can copy."""
    gb_a_token = info["read_bytes"] / 1e9
    shares = [rate * gb_a_token / copy_gb_per_s for rate in values[batch_name("decode", 1)]]
    name = f"{shape} {precision}: weights read at B=1 ÷ copy bandwidth"
    return single(name, shares, "", at_least(0.8) if judged else None)


def memory_row(
    shape: str, precision: str, small: Mapping[str, Any], large: Mapping[str, Any]
) -> Row:
    """The weights' memory beside bf16's."""
    share = small["weight_bytes"] / large["weight_bytes"]
    bar = at_most(0.3) if (shape, precision) == STRICT else None
    return single(f"{shape} {precision}: weights' memory ÷ bf16's", [share], "", bar)


def startup_row(seconds: Sequence[float]) -> Row:
    """From the command to the answer."""
    return single(STARTUP, seconds, "s", at_most(3.0))


def _measures(of_shape: ShapePlan) -> list[tuple[str, str, Bar | None]]:
    sizes = [batch.size for batch in of_shape.batches]
    lengths = list(of_shape.prompt_lens)
    if of_shape.long_prompt_len is not None:
        lengths.append(of_shape.long_prompt_len)
    return [
        *((batch_name("decode", s), "tokens/s", _AS_FAST if s == 1 else None) for s in sizes),
        *((batch_name("throughput", s), "tokens/s", _FASTER if s > 1 else None) for s in sizes),
        *((first_token_name(length), "ms", _AS_SOON) for length in lengths),
    ]
