"""A model and a head twice as wide choose as the narrow ones do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks.speculation.widening import widened
from quickmatch.engine.model_config import RopeConfig
from quickmatch.engine.speculation.head_config import HeadConfig
from tests.parity.models import VOCAB, make_model, save_model
from tests.unit.engine.speculation.dense_head import DenseHead
from tests.unit.engine.speculation.random_head import random_head

HIDDEN = 48
HEAD = HeadConfig(
    vocab_size=VOCAB,
    draft_vocab_size=40,
    target_hidden_size=HIDDEN,
    hidden_size=HIDDEN,
    intermediate_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_model_len=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(theta=10000.0),
    aux_layers=(0, 1, 2),
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    target, head = tmp_path / "narrow", tmp_path / "head-1"
    save_model(make_model("llama-tied"), target)
    head.mkdir()
    save_file(random_head(HEAD), head / "model.safetensors")
    told = {name: getattr(HEAD, name) for name in ("hidden_size", "intermediate_size")}
    (head / "config.json").write_text(json.dumps(told | {"target_hidden_size": HIDDEN}))
    return target, head


def test_logits_are_the_same_but_for_rounding(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    wide, _ = widened(*folders, tmp_path / "wide")
    narrow_model, wide_model = (AutoModelForCausalLM.from_pretrained(f) for f in (folders[0], wide))
    assert wide_model.config.hidden_size == 2 * HIDDEN
    tokens = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(
            wide_model(tokens).logits, narrow_model(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_the_head_drafts_as_before(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    _, wide = widened(*folders, tmp_path / "wide")
    assert wide is not None
    assert json.loads((wide / "config.json").read_text())["target_hidden_size"] == 2 * HIDDEN
    wide_config = replace(
        HEAD,
        target_hidden_size=2 * HIDDEN,
        hidden_size=2 * HIDDEN,
        intermediate_size=2 * HEAD.intermediate_size,
        num_heads=2 * HEAD.num_heads,
        num_kv_heads=2 * HEAD.num_kv_heads,
    )
    dice = torch.Generator().manual_seed(0)
    embedding = torch.randn(VOCAB, HIDDEN, generator=dice)
    states = torch.randn(3, 9, HIDDEN, generator=dice)
    narrow = DenseHead(HEAD, load_file(folders[1] / "model.safetensors"), embedding)
    doubled = DenseHead(wide_config, load_file(wide / "model.safetensors"), embedding.repeat(1, 2))
    g = narrow.fuse(torch.cat(list(states), dim=-1))
    wide_g = doubled.fuse(torch.cat([s.repeat(1, 2) for s in states], dim=-1))
    token_ids = list(range(9))
    torch.testing.assert_close(
        doubled.run(wide_g, token_ids)[1], narrow.run(g, token_ids)[1], rtol=1e-4, atol=1e-4
    )
