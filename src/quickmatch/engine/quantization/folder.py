"""Whether a checkpoint folder holds quantized weights, and in what form: config.json's word.

Owns what is supported of each method; stored.py reads the layers. What is refused is refused here,
before anything is loaded, with the reason; what costs memory that its user would not expect is
logged.

Sources: compressed-tensors' quant_config and quant_args, the quantize_config of GPTQModel and of
AutoAWQ, AutoRound's packing formats.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.quantization.stored import REMEDY, Method, StoredFormat

logger = logging.getLogger(__name__)

_FORMATS = {  # of compressed-tensors: type and bits that each may have
    "pack-quantized": ("int", (4, 8)),
    "int-quantized": ("int", (8,)),
    "float-quantized": ("float", (8,)),
    "mxfp4-pack-quantized": ("float", (4,)),
}


def read_stored_format(folder: Path) -> StoredFormat | None:
    """Return how a folder's linear layers are stored; None where they are not quantized.

    Raises ModelLoadError for what is not supported: another method, other bits, a damaged
    config.json.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{path} is not readable JSON ({error}); download the model again"
        ) from error
    config = raw.get("quantization_config") or raw.get("compression_config")
    if not config:
        return None
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path}: quantization_config is no object; download the model again")
    return _parse(config, str(path))


def _parse(config: Mapping[str, Any], source: str) -> StoredFormat:
    method = config.get("quant_method", "unknown")
    if method in ("auto-round", "intel/auto-round"):
        return _parse_auto_round(config, source)
    if method not in get_args(Method):
        raise ModelLoadError(
            f"{source}: the weights are quantized by {method!r}, which is not supported "
            f"(supported: {', '.join(get_args(Method))}, auto-round); {REMEDY}"
        )
    if method == "compressed-tensors":
        return StoredFormat(method=method, source=source, block=_check_groups(config, source))
    if method == "fp8":
        return StoredFormat(method=method, source=source, block=_block(config, source))
    if method == "gptq":
        return _parse_gptq(config, source)
    _check_bits(config.get("bits", config.get("w_bit")), (4,), source)
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise ModelLoadError(f"{source}: AWQ's {version!r} layout is not supported; {REMEDY}")
    return StoredFormat(method="awq", source=source)


def _parse_gptq(config: Mapping[str, Any], source: str) -> StoredFormat:
    _check_bits(config.get("bits"), (4, 8), source)
    has_groups = config.get("group_size", -1) != -1
    if config.get("desc_act") and has_groups and not config.get("static_groups"):
        _tell_of_order(source, "desc_act is true")
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if layout not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise ModelLoadError(f"{source}: GPTQ's {layout!r} layout is not supported; {REMEDY}")
    return StoredFormat(method="gptq", source=source, zeros_less_one=layout == "gptq")


def _parse_auto_round(config: Mapping[str, Any], source: str) -> StoredFormat:
    """Parse AutoRound's own: GPTQ's layouts, first and second, or AWQ's, under another name."""
    packing = str(config.get("packing_format", "auto_round:auto_gptq"))
    layout = packing.removeprefix("auto_round:")
    if layout == "auto_awq":
        _check_bits(config.get("bits"), (4,), source)
        return StoredFormat(method="awq", source=source)
    if layout in ("auto_gptq", "gptqmodel"):
        _check_bits(config.get("bits"), (4, 8), source)
        return StoredFormat(method="gptq", source=source, zeros_less_one=layout == "auto_gptq")
    raise ModelLoadError(f"{source}: AutoRound's {packing!r} packing is not supported; {REMEDY}")


def _check_groups(config: Mapping[str, Any], source: str) -> tuple[int, int]:
    """Check every group of layers of compressed-tensors; return the block size, (0, 0) for none."""
    for name in ("sparsity_config", "transform_config"):
        part = config.get(name) or {}
        if part.get("format", "dense") != "dense" or part.get("config_groups"):
            raise ModelLoadError(f"{source}: {name} is set, which is not supported; {REMEDY}")
    block = (0, 0)
    for group in (config.get("config_groups") or {}).values():
        weights = group.get("weights")
        if not weights:
            continue
        form = group.get("format") or config.get("format", "unknown")
        kind, bits = _FORMATS.get(form, ("", ()))
        if weights.get("type", "int") != kind:
            raise ModelLoadError(
                f"{source}: weights of type {weights.get('type', 'int')!r} in the format {form!r} "
                f"are not supported (supported: {', '.join(_FORMATS)}); {REMEDY}"
            )
        _check_bits(weights.get("num_bits"), bits, source)
        # Where weights alone were taken in another order, groups still are of neighbours.
        if weights.get("actorder") not in (None, False, "weight", "static"):
            _tell_of_order(source, f"actorder is {weights['actorder']!r}")
        if weights.get("strategy") == "block":
            block = _block({"weight_block_size": weights.get("block_structure")}, source)
    return block


def _tell_of_order(source: str, setting: str) -> None:
    logger.warning(
        "%s: %s, so the inputs of a group lie apart: such layers are kept in bf16, two to four "
        "times as large; a checkpoint without that order would keep its few bits",
        source,
        setting,
    )


def _check_bits(bits: Any, allowed: tuple[int, ...], source: str) -> None:
    if bits not in allowed:
        named = " or ".join(map(str, allowed))
        raise ModelLoadError(
            f"{source}: the weights have {bits} bits, supported here: {named}; {REMEDY}"
        )


def _block(config: Mapping[str, Any], source: str) -> tuple[int, int]:
    size = config.get("weight_block_size")
    if size is None:
        return 0, 0
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)):
        raise ModelLoadError(f"{source}: the block size is {size!r}; two numbers are needed")
    return size[0], size[1]
