"""Ours and SDPA attend to the same numbers, so that their times are of the same work."""

from importlib.util import find_spec

import pytest
import torch

from benchmarks.engine.contenders import OURS
from benchmarks.gpu.figures import SDPA
from benchmarks.models import Shape

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

CPU = torch.device("cpu")
SMALL = Shape(
    name="small",
    hidden_size=64,
    intermediate_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=64,
)


def test_both_compute_the_same_attention() -> None:
    from benchmarks.gpu.prefill import PrefillCase, take_turns

    case = PrefillCase(SMALL, 75, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(case.ours(), case.sdpa(), rtol=1e-4, atol=1e-5)
    taken = take_turns(case, CPU, repetitions=2)
    assert [len(taken[name]) for name in (OURS, SDPA)] == [2, 2]
    assert min(taken[OURS] + taken[SDPA]) > 0
