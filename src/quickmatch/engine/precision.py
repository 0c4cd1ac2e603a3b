"""Which number format a model runs in: resolves dtype "auto", with the reason logged."""

import logging

import torch

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.config import Dtype

logger = logging.getLogger(__name__)

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def choose_dtype(
    asked: Dtype, checkpoint: str | None, device: torch.device, *, has_native: bool = False
) -> torch.dtype:
    """Return the dtype to run in.

    "auto" is the checkpoint's own, except on a CPU that has no instructions for it: there
    float32 is both faster and exact. has_native: the native decoder could run the model in
    bfloat16, which needs no instructions for it.

    Raises ModelLoadError on a checkpoint in another format.
    """
    if asked != "auto":
        return _DTYPES[asked]
    name = checkpoint or "float32"
    if name not in _DTYPES:
        raise ModelLoadError(
            f"config.json names the dtype {name}; supported: {', '.join(_DTYPES)}; "
            "set dtype to convert while loading"
        )
    dtype, reason = _DTYPES[name], "the checkpoint's"
    is_native = has_native and dtype is torch.bfloat16
    if device.type == "cpu" and not (is_native or cpu_has(dtype)):
        dtype, reason = torch.float32, f"this CPU has no instructions for the checkpoint's {name}"
    logger.info("dtype is %s: %s", str(dtype).removeprefix("torch."), reason)
    return dtype


def cpu_has(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of `dtype` with instructions made for it."""
    if dtype == torch.float32:
        return True
    names = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        torch.float16: ("_is_amx_fp16_supported", "_is_avx512_fp16_supported"),
    }.get(dtype, ())
    probes = (getattr(torch.cpu, name, None) for name in names)
    return any(probe() for probe in probes if probe is not None)
