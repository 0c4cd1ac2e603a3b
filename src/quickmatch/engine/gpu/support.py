"""Whether this machine's GPU can run the kernels, and if not, why. Loads no triton to say so."""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

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
    return _too_old(device, LEAST_CAPABILITY) or why_no_compiler()


def why_no_compiler() -> str | None:
    """Return why Triton could not build its launcher, which it does at its first kernel."""
    named = os.environ.get("CC")
    if named is None and not any(map(shutil.which, ("gcc", "clang"))):
        return "triton finds no C compiler (install gcc, or name one in CC)"
    if named is not None and not shutil.which(named):
        return f"CC names the C compiler {named!r}, which is not there (install it, or unset CC)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    headers = Path(sysconfig.get_path("include", scheme))
    if not (headers / "Python.h").is_file():
        return f"triton finds no Python.h in {headers} (install Python's headers, as python3-dev)"
    return None


def why_not_fp8(device: torch.device) -> str | None:
    """Return why weights cannot be held in fp8 e4m3 on a device; None if they can."""
    return why_not_triton(device) or _too_old(device, FP8_CAPABILITY)


def _too_old(device: torch.device, needed: tuple[int, int]) -> str | None:
    have = torch.cuda.get_device_capability(device)
    if have >= needed:
        return None
    return "its compute capability is {}.{}, below {}.{}".format(*have, *needed)
