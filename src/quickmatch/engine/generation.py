"""What a model's folder says about ending and sampling: generation_config.json.

Knows no torch. A model may end a turn with any of several tokens (Llama 3 has three); they are
the union of generation_config.json and config.json, because some checkpoints name the end of a
turn only in the one and the end of the text only in the other.
"""

import json
from pathlib import Path
from typing import Any

from quickmatch.core.errors import ModelLoadError

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids that end a completion, generation_config.json's first; may be empty."""
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read(folder / name).get("eos_token_id")
        for token_id in value if isinstance(value, list) else [value]:
            if isinstance(token_id, int) and token_id not in ids:
                ids.append(token_id)
    return tuple(ids)


def sampling_defaults(folder: Path) -> dict[str, float | int]:
    """Return the sampling parameters that the model's makers advise, where they name any.

    Named as in SamplingParams. `do_sample: false` means greedy: temperature 0.
    """
    raw = _read(folder / "generation_config.json")
    if raw.get("do_sample") is False:
        return {"temperature": 0.0}
    return {name: raw[name] for name in _SAMPLING_KEYS if raw.get(name) is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{path} is not readable JSON ({error}); download the model again"
        ) from error
    return raw if isinstance(raw, dict) else {}
