"""Compresses an OpenVINO model's weights with NNCF: a folder in, a folder out.

    python -m benchmarks.workers.openvino_compress FLOAT_FOLDER TARGET_FOLDER int8|int4

int8 is a scale and a zero point for each output channel, as NNCF has it by default. int4 is
symmetric, in groups of 128 weights (64 where a layer's width is no multiple of 128); the embedding
and the head keep 8 bits, as NNCF has it by default.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nncf
import openvino

_MODEL = "openvino_model"


def main() -> None:
    """Write the compressed folder, whole or not at all."""
    source, target, weights = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    model = openvino.Core().read_model(source / f"{_MODEL}.xml")
    compressed = nncf.compress_weights(model, **_settings(source, weights))
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    is_replaced = shutil.ignore_patterns(f"{_MODEL}.*", "*.gguf")
    shutil.copytree(source, part, ignore=is_replaced)
    openvino.save_model(compressed, part / f"{_MODEL}.xml")
    part.rename(target)


def _settings(source: Path, weights: str) -> dict[str, Any]:
    mode = nncf.CompressWeightsMode
    if weights == "int8":
        return {"mode": mode.INT8_ASYM}
    config = json.loads((source.parent / "config.json").read_text(encoding="utf-8"))
    widths = [config["hidden_size"], config["intermediate_size"]]
    is_wide = all(width % 128 == 0 for width in widths)
    return {"mode": mode.INT4_SYM, "group_size": 128 if is_wide else 64, "ratio": 1.0}


if __name__ == "__main__":
    main()
