"""Writes a Hugging Face folder of Llama's or Qwen3's shape as one GGUF file, for peers.

Needs the `gguf` package and NumPy, and runs under the peer's Python. Weights keep their format,
bfloat16, for a peer that reads it; float16 holds the same numbers but for those under 6e-5. Q8_0
and Q4_0 round blocks of 32 weights to 8 or 4 bits with a float16 scale; the embedding and the
head, as in llama.cpp's own conversions, keep 8.

Source: llama.cpp's convert_hf_to_gguf.py, for what is called how; its rotary embedding of Llama
pairs neighbouring dimensions where Hugging Face's pairs halves, so the rows of q and k change
places. Qwen3's pairs halves in both.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

Dtype = Literal["BF16", "F16", "Q8_0", "Q4_0"]
_ARCHITECTURES = ("llama", "qwen3")
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_file(folder: Path, path: Path, dtype: Dtype) -> Path:
    """Write the model folder as the file `path`, unless that is there already; return it.

    Raises ValueError on a model of another shape, or weights in another format.
    """
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in _ARCHITECTURES:
        raise ValueError(f"model_type is {config['model_type']!r}; known: {_ARCHITECTURES}")
    writer = gguf.GGUFWriter(part, config["model_type"])
    _write_shape(writer, config, dtype)
    _write_tokenizer(writer, folder, config)
    for name, values in _tensors(folder / "model.safetensors"):
        _write_tensor(writer, name, values, config, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(path)


def _write_shape(writer: Any, config: dict[str, Any], dtype: str) -> None:
    writer.add_name("target")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{dtype}"])


def _write_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Prompts and answers are token ids; the table only has to be there and to end a turn."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    by_id = {index: token for token, index in (tokenizer["model"]["vocab"] | special).items()}
    tokens = [by_id.get(index, f"<unused{index}>") for index in range(config["vocab_size"])]
    kinds = [
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config.get("pad_token_id", config["eos_token_id"]))
    writer.add_add_bos_token(False)


def _write_tensor(
    writer: Any, name: str, values: np.ndarray, config: dict[str, Any], dtype: str
) -> None:
    """Write a tensor whose bfloat16 values come as 16-bit integers."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, key in heads.items():
        if f"{part}.weight" in name and config["model_type"] == "llama":
            values = _neighbours(values, config[key])
    if values.ndim == 1:  # norms stay exact
        writer.add_tensor(_gguf_name(name), _floats(values))
    elif dtype == "BF16":
        raw = gguf.GGMLQuantizationType.BF16
        pieces = np.ascontiguousarray(values).view(np.uint8)
        writer.add_tensor(_gguf_name(name), pieces, raw_dtype=raw)
    elif dtype == "F16":
        writer.add_tensor(_gguf_name(name), _floats(values).astype(np.float16))
    else:
        kept = "Q8_0" if name in _NAMES else dtype
        raw = gguf.GGMLQuantizationType[kept]
        blocks = gguf.quants.quantize(_floats(values), raw)
        writer.add_tensor(_gguf_name(name), blocks, raw_dtype=raw)


def _floats(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


def _neighbours(values: np.ndarray, num_heads: int) -> np.ndarray:
    rows, columns = values.shape
    halves = values.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values of each tensor, as the 16 bits of its bfloat16 numbers."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{name} is {entry['dtype']}; only BF16 folders are converted")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        yield name, np.frombuffer(data[start:end], dtype=np.uint16).reshape(entry["shape"])
