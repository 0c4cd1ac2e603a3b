"""Whether a draft model's token ids mean what the target's do. Reads two tokenizer.json."""

import json
from pathlib import Path

import tokenizers

from quickmatch.core.errors import ConfigError
from quickmatch.engine.model_config import ModelConfig


def check_same_vocabulary(
    folder: Path, model: ModelConfig, target_folder: Path | None, target: ModelConfig
) -> None:
    """Raise ConfigError unless the draft model in `folder` has the target's vocabulary.

    The tokenizers are compared where both folders have a tokenizer.json. Where one has none, the
    sizes have to tell; else these may differ, since the models of a family are padded differently.
    """
    own, other = folder / "tokenizer.json", (target_folder or Path()) / "tokenizer.json"
    if target_folder is None or not own.is_file() or not other.is_file():
        if model.vocab_size != target.vocab_size:
            raise ConfigError(
                f"the draft model {folder} has a vocabulary of {model.vocab_size}, the target one "
                f"of {target.vocab_size}, and not both have a tokenizer.json to compare; choose a "
                "draft model of the target's family"
            )
        return
    if own.read_bytes() == other.read_bytes():
        return
    vocabulary, wanted = _vocabulary(own), _vocabulary(other)
    for token, token_id in wanted.items():
        if vocabulary.get(token) != token_id:
            raise ConfigError(
                f"{json.dumps(token, ensure_ascii=False)} is token {token_id} in {target_folder} "
                f"and {vocabulary.get(token, 'none')} in {folder}; "
                "choose a draft model with the target's tokenizer"
            )


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        return dict(tokenizers.Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{path} is no tokenizer ({error}); download the model again") from error
