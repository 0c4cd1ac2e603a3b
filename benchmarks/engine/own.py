"""What only our engine is measured by: steps of several rows, and adapters."""

import random
from pathlib import Path
from typing import Any

from benchmarks.contender import Contender
from benchmarks.engine.adapters import make_adapters
from benchmarks.engine.figures import ADAPTERS, EIGHT_ROWS, NEW_ADAPTER
from benchmarks.engine.plan import NUM_ADAPTERS, NUM_HELD, ShapePlan

_NEW_PROMPT_LEN = 32
_REPETITIONS = 3


def measure_own(
    ours: Contender, of_shape: ShapePlan, model: Path, seed: int
) -> dict[str, list[float]]:
    """Return measure -> one value a turn."""
    folders = make_adapters(of_shape.shape, model, NUM_ADAPTERS + 1, seed=seed)
    steps = ours.ask("time_steps", rows=[1, 8], repetitions=of_shape.num_steps)["step_s"]
    for index in range(NUM_HELD):  # more than there are folders: held once each all the same
        folder = folders[index % NUM_ADAPTERS]
        ours.ask("load_adapter", adapter=f"{index}@1", path=str(folder))
    rng = random.Random(seed)
    found: dict[str, list[float]] = {
        EIGHT_ROWS: [eight / one for one, eight in zip(*steps, strict=True)]
    }
    for _ in range(_REPETITIONS + 1):
        found.setdefault(ADAPTERS, []).append(_adapted_share(ours, of_shape, rng))
        seconds = _new_adapter_s(ours, of_shape, folders[-1], rng)
        found.setdefault(NEW_ADAPTER, []).append(seconds * 1e3)
    return found | {name: found[name][1:] for name in (ADAPTERS, NEW_ADAPTER)}  # the first warms up


def _adapted_share(ours: Contender, of_shape: ShapePlan, rng: random.Random) -> float:
    """Return throughput with an adapter a sequence, of those held, ÷ throughput without any."""
    batch = of_shape.batches[-1]
    fields: dict[str, Any] = {
        "prompts": _prompts(rng, of_shape, batch.size, batch.prompt_len),
        "max_tokens": batch.new_tokens,
    }
    drawn = rng.sample(range(NUM_HELD), NUM_ADAPTERS)
    adapters = [f"{drawn[index % NUM_ADAPTERS]}@1" for index in range(batch.size)]
    base_s = ours.ask("extend", **fields, adapters=[None] * batch.size)["seconds"]
    adapted_s = ours.ask("extend", **fields, adapters=adapters)["seconds"]
    return float(base_s / adapted_s)


def _new_adapter_s(ours: Contender, of_shape: ShapePlan, folder: Path, rng: random.Random) -> float:
    """Return the seconds to load an adapter and compute its first token."""
    prompts = _prompts(rng, of_shape, 1, _NEW_PROMPT_LEN)
    loaded = ours.ask("load_adapter", adapter="new@1", path=str(folder))
    first = ours.ask("extend", prompts=prompts, max_tokens=1, adapters=["new@1"])
    ours.ask("unload_adapter", adapter="new@1")
    return float(loaded["seconds"] + first["seconds"])


def _prompts(rng: random.Random, of_shape: ShapePlan, batch: int, length: int) -> list[list[int]]:
    vocab_size = of_shape.shape.vocab_size
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for _ in range(batch)]
