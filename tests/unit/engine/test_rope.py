"""Frequencies against transformers', and the rotation against its definition."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quickmatch.engine.model_config import parse_model_config
from quickmatch.engine.rope import RotaryTable, rope_frequencies, rotate_

CASES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "attention_factor": 1.25,
        "truncate": False,
    },
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['rope_type']}-{len(c)}")
def test_frequencies_are_transformers(case: dict[str, Any]) -> None:
    theirs = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, **case},
    )
    right, right_factor = ROPE_INIT_FUNCTIONS[case["rope_type"]](theirs, device="cpu")
    raw = {**theirs.to_dict(), "architectures": ["LlamaForCausalLM"]}
    got, factor = rope_frequencies(parse_model_config(raw).rope, 128)
    torch.testing.assert_close(got, right, rtol=1e-6, atol=0)
    assert factor == pytest.approx(right_factor)


def test_rotation_by_its_definition() -> None:
    """Pair (i, i + half) turns by position * theta ** (-2i / dim)."""
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "rope_theta": 100.0,
    }
    rope = parse_model_config(raw).rope
    table = RotaryTable(rope, 8, 50, dtype=torch.float32, device=torch.device("cpu"))
    heads = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    right = heads.clone()
    positions = [0, 7, 49]
    for row, position in enumerate(positions):
        for i in range(4):
            angle = position * 100.0 ** (-2 * i / 8)
            a, b = heads[row, :, i], heads[row, :, i + 4]
            right[row, :, i] = a * math.cos(angle) - b * math.sin(angle)
            right[row, :, i + 4] = b * math.cos(angle) + a * math.sin(angle)
    rotate_(heads, *table.at(torch.tensor(positions)))
    torch.testing.assert_close(heads, right, rtol=1e-5, atol=1e-5)
