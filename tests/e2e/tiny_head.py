"""A head of random weights for the tiny model: what it drafts is mostly wrong, and harmless."""

from pathlib import Path

from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.speculation.head_config import new_head_config
from quickmatch.engine.speculation.head_folder import write_head
from tests.unit.engine.speculation.random_head import random_head


def make_head(folder: Path, model: Path, *, seed: int) -> Path:
    """Write a head in the EAGLE-3 format for a model folder."""
    target = read_model_config(model)
    config = new_head_config(target, draft_vocab_size=target.vocab_size // 2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_head(
        folder,
        config,
        random_head(config, seed=seed),
        format="eagle3",
        target_name=str(model),
        target_architecture=target.architecture,
    )
    return folder
