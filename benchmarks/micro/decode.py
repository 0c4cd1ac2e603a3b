"""Where a decode step's time goes: python -m benchmarks.micro.decode

Builds a random Llama-shaped model of about 15M parameters (8 layers, 384 wide, vocabulary 8K),
decodes with it through the ModelRunner at several batch sizes, and prints the median step with
its parts, each timed alone: the pass over the layers, and choosing tokens. `--operators`
adds torch's own profile of the operators.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState, Span, StepBatch, rows_to_sample
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.verify import verify


def make_model(folder: Path, dtype: torch.dtype) -> None:
    """Write the random model; the tokenizer is a stub, since only token ids are used."""
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def decode_batch(
    runner: ModelRunner, num_rows: int, context: int, params: SamplingParams
) -> StepBatch:
    """One token for each of num_rows sequences that have `context` tokens stored."""
    size = runner.block_size
    blocks_a_row = context // size + 1
    batch = StepBatch([], [], [], [])
    for row in range(num_rows):
        table = list(range(row * blocks_a_row, (row + 1) * blocks_a_row))
        state = SampleState(params, row, [1] * context)
        batch.spans.append(Span(row, 1, context, table, -1, state))
        batch.token_ids.append(row + 5)
        batch.positions.append(context)
        batch.slots.append(table[context // size] * size + context % size)
    return batch


def typical_us(work: Callable[[], object], repeats: int, quantile: float) -> float:
    """Microseconds of one call: that quantile of the repeats, after a warm-up."""
    for _ in range(5):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[int(quantile * (repeats - 1))] * 1e6


def measure(
    runner: ModelRunner, batch: StepBatch, repeats: int, quantile: float
) -> dict[str, float]:
    """Time the whole step and its parts, in microseconds."""

    rows = rows_to_sample(batch.spans)
    with torch.inference_mode():
        logits = runner.logits(batch)
        assert logits is not None
        states = [span.sample for span in batch.spans if span.sample]
        trees = [span.tree for span in batch.spans]
        return {
            "step": typical_us(lambda: runner.run(batch), repeats, quantile),
            "pass": typical_us(lambda: runner._pass.run(batch, rows), repeats, quantile),
            "choose": typical_us(
                lambda: verify(runner._sampler, states, trees, logits), repeats, quantile
            ),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=200)
    # On a machine that does other work too, the fast end of the times is what the code costs.
    parser.add_argument("--quantile", type=float, default=0.5)
    parser.add_argument("--operators", action="store_true")
    options = parser.parse_args()
    params = SamplingParams(
        temperature=options.temperature, top_p=0.95 if options.temperature else 1.0
    )
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), getattr(torch, options.dtype))
        runner = ModelRunner(
            EngineConfig(model=name, dtype=options.dtype, num_threads=options.threads)
        )
        print(
            f"threads {torch.get_num_threads()}, {runner.dtype}, {runner.model_bytes / 1e6:.1f} MB"
        )
        for context in options.context:
            for num_rows in options.batch:
                batch = decode_batch(runner, num_rows, context, params)
                parts = measure(runner, batch, options.repeats, options.quantile)
                rate = num_rows / parts["step"] * 1e6
                shown = {key: round(value) for key, value in parts.items()}
                print(
                    f"context {context} batch {num_rows}: {rate:7.0f} tokens/s ", json.dumps(shown)
                )
                if options.operators:
                    with profile(activities=[ProfilerActivity.CPU]) as profiled:
                        for _ in range(20):
                            runner.run(batch)
                    print(
                        profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
                    )


if __name__ == "__main__":
    main()
