"""Where a kernel is tested: interpreted on the CPU, and compiled where `-m gpu` asks for it."""

from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device whose tensors the kernels get."""
    return torch.device(request.param)
