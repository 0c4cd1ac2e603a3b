"""Adapter folders: what is refused, why, and that a refusal leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quickmatch.core.errors import Conflict, ModelLoadError
from quickmatch.engine.adapter_bank import AdapterBank
from quickmatch.engine.adapter_steps import AdapterSteps
from quickmatch.engine.adapters import Adapter, read_adapter
from quickmatch.engine.batch import Span
from quickmatch.engine.fingerprint import FINGERPRINT_FILE
from quickmatch.engine.lora import DOWN, QKV
from quickmatch.engine.model_config import ModelConfig, RopeConfig

CPU = torch.device("cpu")
MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_model_len=32,
    rms_norm_eps=1e-6,
    rope=RopeConfig(),
    windows=(None, None),
)
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}


def tensor_name(layer: int, part: str, half: str) -> str:
    return f"base_model.model.model.layers.{layer}.{part}_proj.lora_{half}.weight"


def write(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    if tensors is None:
        tensors = {
            tensor_name(1, "self_attn.k", "A"): torch.ones(2, 16),
            tensor_name(1, "self_attn.k", "B"): torch.ones(8, 2),
        }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def read(folder: Path, **options: Any) -> Adapter:
    settings = {"base_fingerprint": "f00", "max_rank": 8, "dtype": torch.float32, "device": CPU}
    return read_adapter(folder, MODEL, **{**settings, **options})


def test_a_part_of_a_fused_layer_moves_its_rows_only(tmp_path: Path) -> None:
    adapter = read(write(tmp_path))
    assert (adapter.rank, adapter.targets) == (2, ("k",))
    assert adapter.layers[0] == [None] * 4
    low = adapter.layers[1][QKV]
    assert low is not None
    assert adapter.layers[1][DOWN] is None
    out = low.up(low.down(torch.ones(1, 16)))[0]
    assert out[:16].abs().max() == 0  # q
    assert (out[16:24] == 16 * 2 * 3).all()  # k: in * rank * (alpha 6 / rank 2)
    assert out[24:].abs().max() == 0  # v


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
    ],
)
def test_unsupported_options(tmp_path: Path, config: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(write(tmp_path, **config))
    assert part in caught.value.message
    assert "train plain LoRA on q_proj, k_proj" in caught.value.message


def test_unsupported_layers(tmp_path: Path) -> None:
    for name in ("base_model.model.lm_head.lora_A.weight",
                 "base_model.model.model.embed_tokens.lora_embedding_A",
                 "base_model.model.model.layers.0.mlp.fc_proj.lora_A.weight"):  # fmt: skip
        with pytest.raises(ModelLoadError, match="which the engine cannot add"):
            read(write(tmp_path, {name: torch.ones(2, 16)}))


def test_another_base(tmp_path: Path) -> None:
    wide = {
        tensor_name(0, "mlp.down", "A"): torch.ones(2, 32),
        tensor_name(0, "mlp.down", "B"): torch.ones(16, 2),
    }
    with pytest.raises(ModelLoadError, match="trained on another base model, deploy it on that"):
        read(write(tmp_path, wide))
    deep = {tensor_name(2, "mlp.down", "A"): torch.ones(2, 24)}
    with pytest.raises(ModelLoadError, match="it adapts layer 2, the base has 2 layers"):
        read(write(tmp_path, deep))
    folder = write(tmp_path)
    (folder / FINGERPRINT_FILE).write_text('{"fingerprint": "beef"}')
    with pytest.raises(ModelLoadError, match="was trained on another base model"):
        read(folder)
    assert read(folder, base_fingerprint="beef").rank == 2


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no adapter_config\.json"):
        read(tmp_path)
    folder = write(tmp_path)
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ModelLoadError, match="is truncated"):
        read(folder)
    path.unlink()
    with pytest.raises(ModelLoadError, match=r"has no adapter_model\.safetensors; save"):
        read(folder)
    (folder / "adapter_model.bin").touch()
    with pytest.raises(ModelLoadError, match="save it as safetensors"):
        read(folder)
    half = {tensor_name(1, "self_attn.k", "A"): torch.ones(2, 16)}
    with pytest.raises(ModelLoadError, match="has no lora_B"):
        read(write(tmp_path, half))
    with pytest.raises(ModelLoadError, match="rank 2; raise max_lora_rank, now 1"):
        read(write(tmp_path), max_rank=1)


def test_rows_are_kept_and_given_again() -> None:
    bank = AdapterBank(2)
    assert [bank.add("a@1"), bank.add("b@1")] == [0, 1]
    with pytest.raises(Conflict, match="2 adapters are loaded, as many as max_adapters allows"):
        bank.add("c@1")
    with pytest.raises(Conflict, match="a@1 is already loaded"):
        bank.add("a@1")
    assert bank.remove("a@1") == 0
    assert (bank.row("b@1"), bank.add("c@1"), bank.ids) == (1, 0, ["b@1", "c@1"])
    with pytest.raises(KeyError):
        bank.row("a@1")


def test_a_step_of_base_rows_is_not_adapted() -> None:
    steps = AdapterSteps(dtype=torch.float32, device=CPU)
    assert steps.step([Span(0, 3, 0, [0], -1, None)], 3) is None
