"""Model folders with random weights: the same bytes from the same seed, with no download.

Speed does not depend on what the weights say, so random ones measure as well as trained ones,
and any machine can make them. A folder is complete (config, weights, tokenizer), because peers
refuse to start without a part that they would never use here. It is made once and then kept;
its name holds shape and seed, so that a changed shape is a new folder.

The weights are drawn with the standard deviation that transformers draws with (0.02).
"""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor

MODELS_FOLDER = Path(__file__).parent / ".models"
_INIT_STD = 0.02
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder's dimensions, in the terms of Hugging Face's config.json."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    architecture: str = "LlamaForCausalLM"
    model_type: str = "llama"
    max_len: int = 2048
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    qk_norm: bool = False


LLAMA_15M = Shape(
    name="llama-15m",
    hidden_size=384,
    intermediate_size=832,
    num_layers=8,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
    vocab_size=8192,
)
QWEN3_600M = Shape(
    name="qwen3-600m",
    hidden_size=1024,
    intermediate_size=3072,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151936,
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    max_len=16384,
    rope_theta=1e6,
    qk_norm=True,
)
SHAPES = {shape.name: shape for shape in (LLAMA_15M, QWEN3_600M)}

# For a GPU: as Llama 3.2 1B and Llama 3.1 8B.
LLAMA_1B = Shape(
    name="llama-1b",
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=128256,
    max_len=16384,
    rope_theta=500000.0,
)
LLAMA_8B = Shape(
    name="llama-8b",
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_len=16384,
    rope_theta=500000.0,
    tie_word_embeddings=False,
)


def make_model(
    shape: Shape, *, seed: int = 0, root: Path = MODELS_FOLDER, device: str = "cpu"
) -> Path:
    """Return the folder of a bf16 model of that shape; made now unless it is there already.

    device: where the numbers are drawn; on a GPU they are others, and come sooner.
    """
    drawn_on = "" if device == "cpu" else f"-{device}"
    folder = root / f"{shape.name}-seed{seed}{drawn_on}"
    if folder.is_dir():
        return folder
    draft = folder.with_suffix(".part")  # renamed when whole: a broken run leaves no folder
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _write_json(draft / "config.json", config_json(shape))
    _write_json(draft / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 0})
    save_file(random_weights(shape, seed, device), draft / "model.safetensors", {"format": "pt"})
    make_tokenizer(min(shape.vocab_size, 8192), seed).save(str(draft / "tokenizer.json"))
    _write_json(draft / "tokenizer_config.json", _tokenizer_config(shape))
    return draft.rename(folder)


def config_json(shape: Shape) -> dict[str, Any]:
    """What transformers, vLLM and our engine read."""
    return {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tie_word_embeddings,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def weight_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the checkpoint; one dimension means a norm's scale."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        at = f"model.layers.{layer}."
        yield at + "self_attn.q_proj.weight", (q_size, hidden)
        yield at + "self_attn.k_proj.weight", (kv_size, hidden)
        yield at + "self_attn.v_proj.weight", (kv_size, hidden)
        yield at + "self_attn.o_proj.weight", (hidden, q_size)
        yield at + "mlp.gate_proj.weight", (inner, hidden)
        yield at + "mlp.up_proj.weight", (inner, hidden)
        yield at + "mlp.down_proj.weight", (hidden, inner)
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
        if shape.qk_norm:
            yield at + "self_attn.q_norm.weight", (shape.head_dim,)
            yield at + "self_attn.k_norm.weight", (shape.head_dim,)
    yield "model.norm.weight", (hidden,)
    if not shape.tie_word_embeddings:
        yield "lm_head.weight", (shape.vocab_size, hidden)


def random_weights(shape: Shape, seed: int, device: str = "cpu") -> dict[str, Tensor]:
    """Draw the checkpoint, bf16, in memory that is not the device's; norms are ones."""
    generator = torch.Generator(device).manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, size in weight_shapes(shape):
        if len(size) == 1:
            weights[name] = torch.ones(size, dtype=torch.bfloat16)
        else:
            drawn = torch.randn(size, generator=generator, device=device) * _INIT_STD
            weights[name] = drawn.to(torch.bfloat16).cpu()
    return weights


def num_weight_bytes(shape: Shape) -> int:
    """Bytes that one decode step has to read: all matrices in bf16, a tied embedding once."""
    sizes = [size for _, size in weight_shapes(shape) if len(size) == 2]
    return sum(rows * columns * 2 for rows, columns in sizes)


def make_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` on made-up words."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_made_up_lines(seed), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise RuntimeError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {vocab_size}; "
            "train it on more lines"
        )
    return tokenizer


def _made_up_lines(seed: int, num_lines: int = 2000) -> Iterator[str]:
    """Lines of twelve words of one to four syllables, common words more often."""
    rng = random.Random(seed)
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(12000)]
    for _ in range(num_lines):
        words = [lexicon[int(len(lexicon) * rng.random() ** 2)] for _ in range(12)]
        yield " ".join(words).capitalize() + "."


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END_OF_TEXT,
        "pad_token": _END_OF_TEXT,
        "model_max_length": shape.max_len,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
