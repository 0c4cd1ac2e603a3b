"""What a Hugging Face folder says of its tokenizer beside the tokenizer itself.

Owns: reading `tokenizer_config.json`, `special_tokens_map.json` and the chat template files, with
the precedence that transformers gives them. It does not tokenize and does not render.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quickmatch.core.errors import ModelLoadError

_NAMED_TOKENS = (
    *("bos_token", "eos_token", "unk_token"),
    *("sep_token", "pad_token", "cls_token", "mask_token"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedTokenConfig:
    """A token that the configuration adds to the tokenizer's own."""

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The named special tokens, added tokens and chat templates of a folder."""

    special_tokens: dict[str, str] = field(default_factory=dict)  # "eos_token" -> "</s>"
    added_tokens: tuple[AddedTokenConfig, ...] = ()  # by id
    chat_templates: dict[str, str] = field(default_factory=dict)  # "default", "tool_use", …

    @classmethod
    def from_folder(cls, folder: Path) -> "TokenizerConfig":
        """Read a folder. Files that are absent say nothing; damaged ones raise ModelLoadError."""
        config = _read_json(folder / "tokenizer_config.json")
        tokens = _named_tokens(_read_json(folder / "special_tokens_map.json"))
        tokens |= _named_tokens(config)
        added = [
            AddedTokenConfig(
                id=int(token_id),
                content=token["content"],
                special=bool(token.get("special", False)),
                lstrip=bool(token.get("lstrip", False)),
                rstrip=bool(token.get("rstrip", False)),
                normalized=bool(token.get("normalized", False)),
                single_word=bool(token.get("single_word", False)),
            )
            for token_id, token in config.get("added_tokens_decoder", {}).items()
        ]
        return cls(
            special_tokens=tokens,
            added_tokens=tuple(sorted(added, key=lambda token: token.id)),
            chat_templates=_chat_templates(folder, config.get("chat_template")),
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}; copy the file again") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):  # a token with its options
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _chat_templates(folder: Path, in_config: Any) -> dict[str, str]:
    """Return templates by name; a template file stands before the configuration's."""
    templates: dict[str, str] = {}
    if isinstance(in_config, str):
        templates["default"] = in_config
    elif isinstance(in_config, list):  # [{"name": …, "template": …}, …]
        templates |= {entry["name"]: entry["template"] for entry in in_config}
    in_json = _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(in_json, str):
        templates["default"] = in_json
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        templates["default"] = alone.read_text(encoding="utf-8")
    return templates
