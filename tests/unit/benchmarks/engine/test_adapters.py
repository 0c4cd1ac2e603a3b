"""Made-up adapters: our engine reads them, and they are made once."""

from dataclasses import replace

import torch

from benchmarks.engine.adapters import make_adapters
from benchmarks.models import LLAMA_15M, make_model
from quickmatch.engine.adapters import read_adapter
from quickmatch.engine.model_config import read_model_config

_TINY = replace(
    LLAMA_15M, name="tiny", hidden_size=16, intermediate_size=32, num_layers=2, vocab_size=300,
    num_heads=2, num_kv_heads=1, head_dim=8,
)  # fmt: skip


def test_adapters_fit_their_model_and_differ(tmp_path):
    model = make_model(_TINY, root=tmp_path)
    folders = make_adapters(_TINY, model, 2, seed=0)
    first, second = (
        read_adapter(
            folder,
            read_model_config(model),
            base_fingerprint=None,
            max_rank=8,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
        )
        for folder in folders
    )
    assert first.rank == 8
    assert set(first.targets) == {"q", "k", "v", "o", "gate", "up", "down"}
    ups = [one.layers[0][1] for one in (first, second)]
    assert not torch.equal(ups[0].b, ups[1].b)
    before = [(folder / "adapter_model.safetensors").stat().st_mtime_ns for folder in folders]
    make_adapters(_TINY, model, 2, seed=0)
    after = [(folder / "adapter_model.safetensors").stat().st_mtime_ns for folder in folders]
    assert after == before
