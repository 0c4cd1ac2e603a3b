"""A model of one tiny layer with the shipped tokenizer, as a folder."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quickmatch.core.shipped import SHIPPED_MODEL, model_source


def make_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Write it with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model_source(SHIPPED_MODEL)) / name, folder)
    return folder
