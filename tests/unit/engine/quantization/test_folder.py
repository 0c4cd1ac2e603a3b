"""What config.json says of quantized weights: what is accepted, and what is refused and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.quantization.folder import read_stored_format

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
ROUND = {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def packed(form: str = "pack-quantized", **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def write(folder: Path, quantization: Any) -> Path:
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_plain_folders_have_no_format(tmp_path: Path) -> None:
    assert read_stored_format(write(tmp_path, None)) is None


@pytest.mark.parametrize(
    ("quantization", "method", "less_one"),
    [
        (GPTQ, "gptq", True),
        ({**GPTQ, "bits": 8, "checkpoint_format": "gptq_v2"}, "gptq", False),
        ({**GPTQ, "desc_act": True, "group_size": -1}, "gptq", True),  # one group: no order
        (AWQ, "awq", False),
        (ROUND, "gptq", True),
        ({**ROUND, "bits": 8, "packing_format": "auto_round:gptqmodel"}, "gptq", False),
        ({**ROUND, "packing_format": "auto_round:auto_awq"}, "awq", False),
        (packed(), "compressed-tensors", False),
        (packed(num_bits=8, actorder="static"), "compressed-tensors", False),
        (packed("int-quantized", num_bits=8, strategy="channel"), "compressed-tensors", False),
        (packed("float-quantized", num_bits=8, type="float"), "compressed-tensors", False),
    ],
)
def test_accepted(quantization: Any, method: str, less_one: bool, tmp_path: Path) -> None:
    found = read_stored_format(write(tmp_path, quantization))
    assert found is not None
    assert (found.method, found.zeros_less_one) == (method, less_one)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({**GPTQ, "desc_act": True}, "desc_act is true"),
        (packed(actorder="group"), "actorder is 'group'"),
        (packed(actorder=True), "actorder is True"),
        (packed(actorder="static"), None),
        ({**GPTQ, "desc_act": True, "static_groups": True}, None),
    ],
)
def test_what_a_reordered_checkpoint_costs_is_logged(
    quantization: Any, message: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_stored_format(write(tmp_path, quantization)) is not None
    if message is None:
        assert not caplog.records
    else:
        assert message in caplog.text
        assert "kept in bf16" in caplog.text


def test_blocks_of_fp8(tmp_path: Path) -> None:
    for quantization in (
        {"quant_method": "fp8", "weight_block_size": [128, 64]},
        packed(
            "float-quantized",
            num_bits=8,
            type="float",
            strategy="block",
            block_structure=[128, 64],
        ),
    ):
        found = read_stored_format(write(tmp_path, quantization))
        assert found is not None
        assert found.block == (128, 64)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized by 'bitsandbytes', which is not supported"),
        ({**GPTQ, "bits": 3}, "have 3 bits, supported here: 4 or 8"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin' layout is not supported"),
        ({**AWQ, "bits": 8}, "have 8 bits, supported here: 4"),
        ({**AWQ, "version": "GEMV"}, "'gemv' layout is not supported"),
        ({**ROUND, "bits": 2}, "have 2 bits, supported here: 4 or 8"),
        ({**ROUND, "packing_format": "auto_round:fp8"}, "'auto_round:fp8' packing is not"),
        (packed(num_bits=2), "have 2 bits"),
        (packed("int-quantized"), "have 4 bits, supported here: 8"),
        (packed("nvfp4-pack-quantized", type="float"), "'nvfp4-pack-quantized' are not supported"),
        ({**packed(), "transform_config": {"config_groups": {"u": {}}}}, "transform_config is set"),
        ({**packed(), "sparsity_config": {"format": "sparse-24"}}, "sparsity_config is set"),
        ("int4", "quantization_config is no object"),
    ],
)
def test_refused_with_a_remedy(quantization: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=message) as refused:
        read_stored_format(write(tmp_path, quantization))
    assert ";" in str(refused.value)


def test_damaged_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelLoadError, match="not readable JSON"):
        read_stored_format(tmp_path)
