"""What a draft of the trained head costs: python -m benchmarks.micro.head

A random head of the shipped model's shape (draft vocabulary 2,048), after one new row a sequence,
as in a step whose draft was rejected. Prints the milliseconds of `observe` and of `draft` by depth,
width and batch, beside one plain decode step of the shipped model at the same batch and context.
"""

import argparse
import time

import torch

from benchmarks.micro.decode import decode_batch
from quickmatch.core.sampling import SamplingParams
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.head import HeadDrafter
from quickmatch.engine.speculation.head_config import HeadConfig, new_head_config
from quickmatch.engine.speculation.kept_rows import DraftRequest, KeptRows


def random_head(config: HeadConfig) -> dict[str, torch.Tensor]:
    """Return tensors that cost what trained ones do."""
    tensors = {name: torch.randn(shape) * 0.02 for name, shape in config.tensor_shapes().items()}
    tensors["d2t"] = torch.zeros(config.draft_vocab_size, dtype=torch.int64)
    return tensors


class Bench:
    """A runner of the shipped model and a head beside it."""

    def __init__(self, dtype: str, context: int, quantile: float) -> None:
        self.quantile = quantile
        self.runner = ModelRunner(
            EngineConfig(model=model_source(SHIPPED_MODEL), dtype=dtype, num_threads=1)
        )
        runner, model = self.runner, self.runner.model_config
        config = new_head_config(model, draft_vocab_size=min(2048, model.vocab_size))
        self.context = context
        self.head = HeadDrafter(
            config,
            random_head(config),
            embedding=torch.randn(model.vocab_size, model.hidden_size).to(runner.dtype),
            model=model,
            num_blocks=runner.num_blocks,
            block_size=runner.block_size,
            max_model_len=runner.max_model_len,
            dtype=runner.dtype,
            device=runner.device,
            min_path=0.0,  # a random head is sure of nothing, and would stop at once
        )
        self.features = torch.randn(32, config.num_aux * model.hidden_size).to(runner.dtype)

    def decode_s(self, batch: int, repeats: int) -> float:
        """Seconds of the target's plain step."""
        step = decode_batch(self.runner, batch, self.context, SamplingParams(temperature=0.0))
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            self.runner.run(step)
            times.append(time.perf_counter() - started)
        return self.typical(times)

    def draft_s(self, batch: int, depth: int, width: int, repeats: int) -> tuple[float, float]:
        """Seconds of observe and of draft."""
        blocks = -(-(self.context + 32) // self.runner.block_size)
        tables = [list(range(i * blocks, (i + 1) * blocks)) for i in range(batch)]
        kept = [KeptRows(i, self.context, [i], [7], tables[i]) for i in range(batch)]
        tokens = [7] * (self.context + 2)
        requests = [DraftRequest(i, tokens, tables[i]) for i in range(batch)]
        observes, drafts = [], []
        for _ in range(repeats):
            started = time.perf_counter()
            self.head.observe(kept, [self.features[:batch]])
            observed = time.perf_counter()
            self.head.draft(requests, depth=depth, width=width, max_nodes=24)
            drafts.append(time.perf_counter() - observed)
            observes.append(observed - started)
        return self.typical(observes), self.typical(drafts)

    def typical(self, times: list[float]) -> float:
        """Return the quantile that was asked for."""
        return sorted(times)[int(self.quantile * (len(times) - 1))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--width", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--depth", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--repeats", type=int, default=200)
    # On a machine that does other work too, the fast end of the times is what the code costs.
    parser.add_argument("--quantile", type=float, default=0.5)
    options = parser.parse_args()
    bench = Bench(options.dtype, options.context, options.quantile)
    print(f"{options.dtype}, context {options.context}, head {bench.head.num_bytes / 1e6:.1f} MB")
    for batch in options.batch:
        plain = bench.decode_s(batch, options.repeats)
        print(f"batch {batch}: plain step of the target {plain * 1e3:.3f} ms")
        for width in options.width:
            bench.draft_s(batch, 2, width, 20)
            cells = []
            for depth in options.depth:
                observe, draft = bench.draft_s(batch, depth, width, options.repeats)
                cells.append(f"{draft * 1e3:.3f}")
            print(f"  width {width}: observe {observe * 1e3:.3f}, draft by depth", *cells, "ms")


if __name__ == "__main__":
    main()
