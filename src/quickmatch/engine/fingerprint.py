"""Which base model an adapter was made for: a fingerprint of a model folder.

Two models of one shape cannot be told apart by an adapter's tensors, and an adapter on the
wrong base answers nonsense without an error. So the trainer leaves the base's fingerprint
beside the adapter, and loading compares it. Adapters from elsewhere have none, and pass. A folder
that was quantized has the fingerprint of what it was made from: adapters of that fit it.

The fingerprint hashes what the safetensors headers say and the ends of each file's data, not
all of it: it tells models apart, quickly; it is no checksum against tampering.
"""

import hashlib
import json
from pathlib import Path

from quickmatch.engine.folder import read_safetensors_header, weight_files

FINGERPRINT_FILE = "base_fingerprint.json"
_SAMPLE_BYTES = 1 << 16


def model_fingerprint(folder: Path) -> str:
    """Return a short hex string that differs for models with different weights."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        header = read_safetensors_header(path)
        shapes = sorted((name, entry["dtype"], entry["shape"]) for name, entry in header.items())
        digest.update(json.dumps(shapes).encode())
        size = path.stat().st_size
        with path.open("rb") as file:
            for part in range(8):
                file.seek(max(0, size - _SAMPLE_BYTES) * (part + 1) // 8)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def fingerprint_as_base(folder: Path) -> str:
    """Return what an adapter that fits the model has beside it."""
    return read_base_fingerprint(folder) or model_fingerprint(folder)


def write_base_fingerprint(folder: Path, base_folder: Path) -> None:
    """Leave the base's fingerprint beside an adapter, or a quantized model, that came of it."""
    content = {"fingerprint": fingerprint_as_base(base_folder)}
    (folder / FINGERPRINT_FILE).write_text(json.dumps(content), encoding="utf-8")


def read_base_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint beside an adapter or a quantized model, None where there is none."""
    try:
        raw = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = raw.get("fingerprint") if isinstance(raw, dict) else None
    return value if isinstance(value, str) else None
