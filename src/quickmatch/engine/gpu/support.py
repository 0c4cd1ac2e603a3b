"""Whether this machine's GPU can run the kernels, and if not, why. Loads no triton to say so."""

import os
from importlib.util import find_spec

import torch

LEAST_CAPABILITY = (8, 0)  # bfloat16 in tensor cores
FP8_CAPABILITY = (8, 9)  # conversions of e4m3
_INTERPRETS = "TRITON_INTERPRET"


def why_not_triton(device: torch.device) -> str | None:
    """Return why the kernels cannot run on a device, with the remedy; None if they can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'quickmatch[gpu]')"
    if os.environ.get(_INTERPRETS, "0") not in ("", "0"):
        return f"{_INTERPRETS} is set, which is for tests; unset it"
    return _too_old(device, LEAST_CAPABILITY)


def why_not_fp8(device: torch.device) -> str | None:
    """Return why weights cannot be held in fp8 e4m3 on a device; None if they can."""
    return why_not_triton(device) or _too_old(device, FP8_CAPABILITY)


def _too_old(device: torch.device, needed: tuple[int, int]) -> str | None:
    have = torch.cuda.get_device_capability(device)
    if have >= needed:
        return None
    return "its compute capability is {}.{}, below {}.{}".format(*have, *needed)
