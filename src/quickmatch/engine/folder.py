"""From what a user names, a path or a hub id, to a complete model folder on this machine.

Knows files, not tensors: no torch here, so that the text side and the command line resolve a
model in milliseconds. Everything that can be told from file names and sizes is told here, in
one line with the remedy, before anything is loaded: a missing part, a missing shard, a
truncated safetensors file.

A hub id that is in the local cache is used as it is, without a word to the network. Otherwise
it is downloaded, with short time limits and no retries, since a server that hangs for minutes
before it says "no network" is worse than one that says it at once.
"""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quickmatch.core.errors import ModelLoadError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"  # read of heads alone, many of which are published so
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_HUB_PART_FILES = ("*.json", "*.safetensors", PICKLED_FILE)
_HUB_IGNORED = ("original/*", "consolidated*", "*/*")
_HUB_TIMEOUT_S = 5.0
_MAX_HEADER_BYTES = 100_000_000


def resolve_model(path_or_id: str) -> Path:
    """Return the complete local folder of a model given as a path or as a hub id.

    Raises ModelLoadError: no such folder, a part missing or truncated, an unknown hub id, or no
    network to fetch it by.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        check_model_folder(path)
        return path
    if path.exists():
        raise ModelLoadError(f"{path} is a file; give the model's folder: {path.parent}")
    if not _HUB_ID.match(path_or_id):
        raise ModelLoadError(
            f"there is no model folder at {path_or_id}; "
            "give an existing Hugging Face model folder or a hub id such as Qwen/Qwen3-0.6B"
        )
    return _from_hub(path_or_id, check_model_folder, _HUB_FILES)


def resolve_part(path_or_id: str) -> Path:
    """Return the local folder of an adapter or a head given as a path or as a hub id.

    What is in it is told by whoever reads it; a path where nothing is comes back as it is. Raises
    ModelLoadError: an unknown hub id, or no network to fetch it by.
    """
    path = Path(path_or_id).expanduser()
    if path.exists() or not _HUB_ID.match(path_or_id):
        return path
    return _from_hub(path_or_id, _check_part_folder, _HUB_PART_FILES)


def _check_part_folder(folder: Path) -> None:
    has_config = any((folder / n).is_file() for n in ("config.json", "adapter_config.json"))
    if not has_config or not any(any(folder.glob(n)) for n in ("*.safetensors", PICKLED_FILE)):
        raise ModelLoadError(
            f"{folder} holds neither an adapter nor a head; give the id of one, or the folder"
        )


def check_model_folder(folder: Path) -> None:
    """Raise ModelLoadError naming the first part that is missing or cut off."""
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{folder} has no config.json; give a Hugging Face model folder or download it again"
        )
    for file in weight_files(folder):
        check_safetensors(file)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelLoadError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}); "
            "copy it from the model it was trained from"
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model's weights; all of them exist."""
    index = folder / INDEX_FILE
    if index.is_file():
        return [_shard(folder, name) for name in sorted(set(_weight_map(index).values()))]
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if any(folder.glob("model-*-of-*.safetensors")):
        raise ModelLoadError(f"{folder} has shards but no {INDEX_FILE}; download the model again")
    if any(folder.glob("*.bin")):
        raise ModelLoadError(
            f"{folder} holds pickled weights (*.bin) only; convert them to safetensors with "
            "transformers' save_pretrained"
        )
    raise ModelLoadError(
        f"{folder} has no weights ({WEIGHTS_FILE} or {INDEX_FILE}); download the model again"
    )


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Return name -> {dtype, shape, data_offsets} without reading the tensors.

    Raises ModelLoadError where the file is no safetensors file or is cut off. Layout: 8 bytes
    header length, the header as JSON, then the tensors' bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ModelLoadError(f"{path} is no safetensors file; download it again")
        if 8 + length > size:
            raise _truncated(path, size, 8 + length)
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ModelLoadError(f"{path} has a damaged header; download it again") from None
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if 8 + length + end > size:
        raise _truncated(path, size, 8 + length + end)
    return tensors


def check_safetensors(path: Path) -> None:
    """Raise ModelLoadError where a safetensors file is damaged or shorter than it says."""
    read_safetensors_header(path)


def _truncated(path: Path, size: int, needed: int) -> ModelLoadError:
    return ModelLoadError(
        f"{path} is truncated: it has {size} bytes of {needed}; copy or download it again"
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelLoadError(
            f"{index} is damaged: it has no weight_map; download it again"
        ) from None


def _shard(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ModelLoadError(
            f"{folder} lacks the shard {name} that {INDEX_FILE} names; download the model again"
        )
    return path


def _from_hub(hub_id: str, check: Callable[[Path], None], files: tuple[str, ...]) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors as hub_errors
    except ImportError:
        raise ModelLoadError(
            f"{hub_id} is no local folder, and hub ids need the package huggingface_hub"
        ) from None
    cached = _cached(hub_id, check)
    if cached is not None:
        return cached
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                hub_id,
                allow_patterns=list(files),
                ignore_patterns=list(_HUB_IGNORED),
                etag_timeout=_HUB_TIMEOUT_S,
            )
        )
    except hub_errors.GatedRepoError:
        raise ModelLoadError(
            f"{hub_id} is gated; accept its licence on the hub and set HF_TOKEN"
        ) from None
    except hub_errors.RepositoryNotFoundError:
        raise ModelLoadError(
            f"{hub_id} is neither a local folder nor a model on the hub (or it is private); "
            "check the spelling, or set HF_TOKEN for a private one"
        ) from None
    except Exception as error:  # the hub client lets through whatever its HTTP stack raises
        raise ModelLoadError(_no_network(hub_id, error)) from error
    check(folder)
    return folder


def _cached(hub_id: str, check: Callable[[Path], None]) -> Path | None:
    """Return the cached folder if it is whole; a half-finished download counts as absent."""
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, local_files_only=True))
        check(folder)
    except (OSError, ValueError, ModelLoadError):
        return None
    return folder


def _no_network(hub_id: str, error: Exception) -> str:
    return (
        f"{hub_id} is no local folder, is not in the hub cache, and cannot be downloaded "
        f"({type(error).__name__}); check the network, or give the path of a model folder"
    )
