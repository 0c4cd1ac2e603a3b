"""The kernels compile for GPUs, in the shapes in which they are launched; no GPU is needed.

The interpreter takes much that the compiler refuses (two types of one name, shapes that differ by
branch), and knows nothing of a card's limits.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.engine.gpu.compile_launches import SHAPES

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # that a program may have, of A100 and of H100
KERNELS = {
    "split_attention",
    "merge_splits",
    "chunk_attention",
    "shrink",
    "expand",
    "place_heads",
    "activate",
    "product",
}


def compiled(capability: int, shape: str, cache: Path, *more: str) -> dict[str, int]:
    """Compile in a process that does not interpret; return the most shared memory of each."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["TRITON_CACHE_DIR"] = str(cache)
    module = "tests.unit.engine.gpu.compile_launches"
    done = subprocess.run(
        [sys.executable, "-m", module, str(capability), shape, *more],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[4],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    most: dict[str, int] = {}
    for line in done.stdout.splitlines():
        told = json.loads(line)
        most[told["kernel"]] = max(most.get(told["kernel"], 0), told["shared_bytes"])
    return most


def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    most = compiled(90, "llama-8b", tmp_path, "quick")
    assert set(most) == KERNELS
    assert max(most.values()) <= SHARED_BYTES[90]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_shape_compiles(capability: int, shape: str, tmp_path: Path) -> None:
    most = compiled(capability, shape, tmp_path)
    assert set(most) == KERNELS
    assert max(most.values()) <= SHARED_BYTES[capability]
