"""Rows from samples: which value is told of which arm, and the bars of the benchmark.

Bars (each holds in the same run, on the same machine, by the median of the paired ratios; those of
credit for all sizes of target):

    adapted, credit, B=1            hit rate ≥ 0.80; decode ≥ 2.5 × plain and ≥ 3 × generic
    adapted, credit, B=8 and B=32   decode ≥ 1.5 × and ≥ 1.1 × plain
    adapted, prose at temperature 1 decode ≥ 0.98 × plain; at temperature 2, too
    adapted, the mixed stream, B=1  decode ≥ 1.05 × the better of suffix and head alone
    float32, every arm of ours      all texts equal to plain's
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.harness import Samples
from benchmarks.rows import Bar, Row, against, at_least, single
from benchmarks.speculation.arms import ADAPTED, GENERIC, HEAD, OURS, PLAIN, SUFFIX
from benchmarks.speculation.turns import ALL, measure_name
from benchmarks.speculation.workloads import CREDIT, CREDIT_DEEP, CREDIT_WIDE, NOISE, PROSE

TOKENS_PER_S = "tokens/s"
_TARGETS = (CREDIT, CREDIT_DEEP, CREDIT_WIDE)
_TIMES_PLAIN = {
    **{(target, size): bar for target in _TARGETS for size, bar in ((1, 2.5), (8, 1.5), (32, 1.1))},
    **{(text, size): 0.98 for text in (PROSE, NOISE) for size in (1, 8)},
}
_TIMES_GENERIC = {(target, 1): 3.0 for target in _TARGETS}
_TIMES_BETTER = {(ALL, 1): 1.05, (ALL + "-wide", 1): 1.05}
_HIT_RATE = {(ADAPTED, target, 1): 0.80 for target in _TARGETS}


def speed_rows(
    samples: Samples, workload: str, concurrency: int, missing: Mapping[str, str]
) -> list[Row]:
    """Every arm beside plain, adapted beside the generic model and the better part, and peers."""
    name = measure_name("decode", workload, concurrency)
    values = {arm: found[name] for arm, found in samples.items() if name in found}
    if PLAIN not in values:
        return []
    at, rows = (workload, concurrency), []
    for arm in [arm for arm in OURS if arm in values and arm != PLAIN]:
        bars = _bars(_TIMES_PLAIN, at, PLAIN) if arm == ADAPTED else {}
        rows += _beside(f"{arm}: {name}", values, arm, [PLAIN], bars)
    if ADAPTED in values:
        rows += _beside(
            f"{ADAPTED}: {name}", values, ADAPTED, [GENERIC], _bars(_TIMES_GENERIC, at, GENERIC)
        )
        better = better_part(values)
        if better:
            bars = _bars(_TIMES_BETTER, at, better)
            rows += _beside(f"{ADAPTED}: {name}", values, ADAPTED, [better], bars)
        peers = [arm for arm in values if arm not in OURS]
        rows += _beside(f"{ADAPTED}: {name}", values, ADAPTED, peers, {})
    return rows + missing_rows(name, missing)


def rate_rows(
    samples: Samples, workload: str, concurrency: int, arms: Sequence[str] | None = None
) -> list[Row]:
    """Hit rate and accepted length of each arm that tells them."""
    rows = []
    for kind in ("hit rate", "accepted length"):
        name = measure_name(kind, workload, concurrency)
        for arm, found in samples.items():
            if name in found and (arms is None or arm in arms):
                limit = _HIT_RATE.get((arm, workload, concurrency))
                bar = at_least(limit) if limit and kind == "hit rate" else None
                rows.append(single(f"{arm}: {name}", found[name], "", bar))
    return rows


def equal_rows(
    shares: Mapping[str, float | None], what: str, *, is_judged: bool = False
) -> list[Row]:
    """The share of texts equal to plain's, an arm each; judged where arithmetic is exact."""
    bar = at_least(1.0) if is_judged else None
    return [
        single(f"{arm}: texts equal to plain's, {what}", [share], "", bar)
        for arm, share in shares.items()
        if share is not None
    ]


def loop_rows(shares: Mapping[str, float]) -> list[Row]:
    """The share of calls whose plain answer goes in circles; they are left out of everything."""
    return [
        single(f"left out, answer loops: {name}", [share], "") for name, share in shares.items()
    ]


def missing_rows(name: str, missing: Mapping[str, str]) -> list[Row]:
    """A row for each arm that could not be measured, with its reason."""
    return [
        Row(measure=name, value=None, unit=TOKENS_PER_S, peer=arm, note=reason)
        for arm, reason in missing.items()
    ]


def better_part(values: Mapping[str, Sequence[float]]) -> str | None:
    """Return the faster of suffix and head alone; None unless both were measured."""
    if SUFFIX not in values or HEAD not in values:
        return None
    return max((SUFFIX, HEAD), key=lambda arm: median(values[arm]))


def _beside(
    measure: str,
    values: Mapping[str, Sequence[float]],
    arm: str,
    others: Iterable[str],
    bars: Mapping[str, Bar],
) -> list[Row]:
    peers = {other: values[other] for other in others if other in values}
    return against(measure, TOKENS_PER_S, values[arm], peers, bars=bars) if peers else []


def _bars(
    limits: Mapping[tuple[str, int], float], at: tuple[str, int], peer: str
) -> dict[str, Bar]:
    return {peer: at_least(limits[at], times_peer=True)} if at in limits else {}
