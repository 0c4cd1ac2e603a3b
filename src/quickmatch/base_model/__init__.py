"""The small base model that ships with the package: a Hugging Face folder, made by `recipes/`."""

from pathlib import Path

PATH: Path = Path(__file__).parent
"""The folder that holds config.json, tokenizer.json and model.safetensors."""
