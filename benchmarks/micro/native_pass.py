"""The native pass beside torch's, by a step's rows: python -m benchmarks.micro.native_pass

Runs a model in bfloat16 on made-up steps that only decode or verify, and prints the median
milliseconds of each pass and their ratio. The two take turns, so that both meet the same machine,
and each finds the caches full of the other's weights.

As on a processor without AVX-512, where torch is quicker in float32:

    QUICKMATCH_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \\
        MKL_ENABLE_INSTRUCTIONS=AVX2 python -m benchmarks.micro.native_pass --torch-dtype float32
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.batch import StepBatch, rows_to_sample
from quickmatch.engine.forward_pass import ForwardPass, PassSize
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.native_pass import NativePass, why_not_native
from quickmatch.engine.speculation.timing import timing_batch
from quickmatch.engine.torch_pass import TorchPass

_SIZES = ((1, 1), (1, 4), (1, 8), (1, 16), (8, 8), (8, 32), (8, 64), (32, 32), (32, 128))
_SIZE = PassSize(num_blocks=2048, block_size=16, max_model_len=2048)
_CPU = torch.device("cpu")


def once(a_pass: ForwardPass, batch: StepBatch, rows: list[int]) -> float:
    """Return the milliseconds of one run."""
    started = time.perf_counter()
    a_pass.run(batch, rows)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=SHIPPED_MODEL, help="a folder, or a shipped model")
    parser.add_argument("--torch-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(model_source(options.model))
    model = read_model_config(folder)
    reason = why_not_native(model, _SIZE.block_size, dtype=torch.bfloat16, device=_CPU)
    if reason is not None:
        raise SystemExit(f"the native pass cannot run here: {reason}")
    with torch.inference_mode():
        native = NativePass(folder, model, _SIZE, num_threads=options.threads)
        dtype = getattr(torch, options.torch_dtype)
        of_torch = TorchPass(folder, model, _SIZE, dtype=dtype, device=_CPU)
        print(f"{'sequences':>9} {'rows':>5} {'native ms':>10} {'torch ms':>9} {'ratio':>6}")
        for num_seqs, num_rows in _SIZES:
            batch = timing_batch(num_seqs, num_rows, _SIZE.num_blocks, 16, 2048)
            rows = rows_to_sample(batch.spans)
            for a_pass in (native, of_torch):
                for _ in range(3):
                    once(a_pass, batch, rows)
            pairs = [
                (once(native, batch, rows), once(of_torch, batch, rows))
                for _ in range(options.repeats)
            ]
            ours, theirs = (median(times) for times in zip(*pairs, strict=True))
            print(f"{num_seqs:9} {num_rows:5} {ours:10.2f} {theirs:9.2f} {theirs / ours:6.1f}")


if __name__ == "__main__":
    main()
