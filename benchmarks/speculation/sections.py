"""The sections that measure arms: credit, the mixed stream, prose, predictions, exactness.

Each starts the arms that it needs, warms them up with past calls, and lets them take turns.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.speculation.arms import ADAPTED, OURS, PLAIN
from benchmarks.speculation.bench import Bench
from benchmarks.speculation.calls import Call
from benchmarks.speculation.figures import equal_rows, loop_rows
from benchmarks.speculation.plan import PREDICTION, Plan
from benchmarks.speculation.running import Arm, running, warm_up
from benchmarks.speculation.turns import ALL, Turns, equal_share, num_tokens, rounds_of
from benchmarks.speculation.workloads import (
    CODE_EDITS,
    CREDIT,
    CREDIT_WIDE,
    MIXED,
    MIXED_WIDE,
    NOISE,
    PROSE,
    prose,
)

_WIDE = (CREDIT_WIDE, MIXED_WIDE)


def measure_credit(bench: Bench, section: str) -> None:
    """The specialised workload at batch 1, 8 and 32, every arm and every peer.

    section: of CREDIT_SECTIONS, which says to which target.
    """
    plan, streams = bench.plan, bench.streams[section]
    bench.report.add(*loop_rows(streams.test.loop_shares))
    names = [*plan.arms, *(plan.peers if section == CREDIT else _few(plan))]
    with (
        bench.screen.stage(section, "explanations of ratings: every arm, every peer"),
        running(names, bench.parts[section], quantization=plan.quantization) as arms,
    ):
        _tell(bench, arms)
        warm_up(arms.values(), streams.past)
        left = streams.test.calls
        for concurrency, size in plan.credit_calls.items():
            num_rounds = plan.num_rounds(concurrency)
            rounds = rounds_of(left, num_rounds, size)
            left = left[num_rounds * size :]
            bench.speeds(arms, rounds, section, concurrency)


def measure_mixed(bench: Bench) -> None:
    """A shuffled stream of all other workloads, prose, and edits with a prediction."""
    plan, streams = bench.plan, bench.streams[MIXED]
    bench.report.add(*loop_rows(streams.test.loop_shares))
    names = [*plan.arms, *(_few(plan) if MIXED in plan.sections else ())]
    with (
        bench.screen.stage(MIXED, "a stream of all the other workloads"),
        running(names, bench.parts[MIXED], quantization=plan.quantization) as arms,
    ):
        _tell(bench, arms)
        warm_up(arms.values(), streams.past)
        if MIXED in plan.sections:
            _mixed_stream(bench, arms, MIXED)
        if PREDICTION in plan.sections and CODE_EDITS in plan.workloads:
            _predictions(bench, arms)
        if PROSE in plan.sections:
            _prose(bench, arms)


def measure_mixed_wide(bench: Bench) -> None:
    """The mixed stream again, to a target that lies in no cache."""
    names = [*bench.plan.arms, *_few(bench.plan)]
    with (
        bench.screen.stage(MIXED_WIDE, "the same stream, a target twice as wide"),
        running(names, bench.parts[MIXED_WIDE], quantization=bench.plan.quantization) as arms,
    ):
        _tell(bench, arms)
        warm_up(arms.values(), bench.streams[MIXED_WIDE].past)
        _mixed_stream(bench, arms, MIXED_WIDE)


def measure_exactness(bench: Bench) -> None:
    """Greedy texts in float32, where only the order of sums differs: all must be equal."""
    plan = bench.plan
    with bench.screen.stage("exactness", "greedy texts in float32, every arm of ours"):
        for target, streams in bench.streams.items():
            if target in _WIDE:  # in float32 the narrower one again, four times as long
                continue
            calls = random.Random(1).sample(streams.test.calls, plan.exact_calls)
            with running(plan.arms, bench.parts[target], dtype="float32") as arms:
                warm_up(arms.values(), streams.past)
                for concurrency in (1, 8):
                    _exact(bench, arms, calls, f"{target}, B={concurrency}", concurrency)
        bench.write()


def _mixed_stream(bench: Bench, arms: dict[str, Arm], section: str) -> None:
    """Alone, each workload is told apart. No caller predicts anything here."""
    plan, streams = bench.plan, bench.streams[section]
    size = section.removeprefix(MIXED)  # ends the names of what is measured
    num_used = 0
    for concurrency, each in plan.mixed_calls.items():
        num_rounds = plan.num_rounds(concurrency)
        rounds = streams.round_robin(plan.workloads, num_rounds, each, num_used)
        num_used += num_rounds * each
        calls = [
            [replace(call.without_prediction(), workload=call.workload + size) for call in of_round]
            for of_round in rounds
        ]
        alone = [name + size for name in plan.workloads] if concurrency == 1 else ()
        bench.speeds(arms, calls, ALL + size, concurrency, workloads=alone)


def _predictions(bench: Bench, arms: dict[str, Arm]) -> None:
    """Edits whose caller sends the code as it was: only `adapted` makes use of it."""
    plan, streams = bench.plan, bench.streams[MIXED]
    num_rounds, size = plan.num_rounds(1), plan.prediction_calls
    calls = streams.test.of(CODE_EDITS)[-num_rounds * size :]
    chosen = {name: arms[name] for name in (PLAIN, ADAPTED) if name in arms}
    rounds = rounds_of(calls, num_rounds, size)
    bench.speeds(chosen, rounds, "code_edits with prediction", 1)


def _prose(bench: Bench, arms: dict[str, Arm]) -> None:
    """Random sampling from raw openings, where drafting must cost nothing.

    At temperature 1 such small models still repeat themselves; at 2 there is nothing to foretell.
    """
    plan = bench.plan
    num_rounds = plan.warm_up + plan.prose_repetitions
    total = 2 * num_rounds * sum(plan.prose_calls.values())
    calls = bench.encoder.raw(prose(total, plan.seed))
    chosen = {name: arm for name, arm in arms.items() if name in OURS}
    for label, temperature in ((PROSE, 1.0), (NOISE, 2.0)):
        settings = {"temperature": temperature, "seed": plan.seed, "ignore_eos": True}
        for concurrency, size in plan.prose_calls.items():
            rounds = rounds_of(calls, num_rounds, size)
            calls = calls[num_rounds * size :]
            bench.speeds(chosen, rounds, label, concurrency, settings=settings, is_exact=False)


def _exact(
    bench: Bench, arms: dict[str, Arm], calls: Sequence[Call], what: str, concurrency: int
) -> None:
    turns = {name: Turns(arm, [list(calls)], concurrency, what) for name, arm in arms.items()}
    with bench.screen.bar(f"float32, {what}", len(turns)) as bar:
        for taken in turns.values():
            taken()
            bar.advance()
    plain = turns[PLAIN]
    shares = {n: equal_share(t, plain) for n, t in turns.items() if n != PLAIN}
    count = num_tokens(plain.answers)
    rows = equal_rows(shares, f"float32, {what}, {count} tokens", is_judged=True)
    bench.report.add(*rows)


def _few(plan: Plan) -> tuple[str, ...]:
    return tuple(name for name in plan.peers if name in plan.few_peers)


def _tell(bench: Bench, arms: dict[str, Arm]) -> None:
    """Note versions of those that run and why the others do not."""
    bench.report.peers |= {name: arm.reason or arm.info for name, arm in arms.items()}
