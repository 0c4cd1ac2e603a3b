"""Reads and writes the model folder as Hugging Face lays it out, weights in bfloat16."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from recipes.base_model.model import BaseModel
from recipes.base_model.settings import ModelSettings
from recipes.base_model.tokenizer import SPECIALS, save_tokenizer

PREFIX = "model."


def hf_config(settings: ModelSettings, tokenizer: Tokenizer) -> dict[str, object]:
    """config.json: an ordinary Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": settings.vocab_size,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_kv_heads,
        "head_dim": settings.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": settings.max_length,
        "rms_norm_eps": settings.rms_norm_eps,
        "rope_theta": settings.rope_theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "torch_dtype": "bfloat16",
    }


def export(model: BaseModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the whole folder; the weights are replaced in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    end, _, turn_end = (tokenizer.token_to_id(token) for token in SPECIALS)
    generation = {"eos_token_id": [turn_end, end], "pad_token_id": end, "do_sample": False}
    _write_json(folder / "config.json", hf_config(model.settings, tokenizer))
    _write_json(folder / "generation_config.json", generation)
    weights = {
        PREFIX + name: tensor.detach().to(torch.bfloat16).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    partial = folder / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    os.replace(partial, folder / "model.safetensors")


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def load_folder(folder: Path) -> tuple[BaseModel, Tokenizer]:
    """The exported model, in float32 arithmetic on the shipped bfloat16 weights."""
    config = json.loads((folder / "config.json").read_text())
    settings = ModelSettings(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rope_theta=config["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
        max_length=config["max_position_embeddings"],
    )
    model = BaseModel(settings)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict(
        {name.removeprefix(PREFIX): tensor.float() for name, tensor in weights.items()}
    )
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    from recipes.base_model.train import load_checkpoint_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    export(load_checkpoint_model(args.checkpoint), tokenizer, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
