"""What is collected for a draft job: token ids, kept only while the job needs them.

Owns the folder `data` of a job and its deletion, which is audited. The job's document names the
folder from before the first byte is in it until after the last is gone; so what a crash leaves
behind is found again (`sweep`). An interrupted job keeps its data, to go on with; a job that has
ended has none, unless it was told to keep it.

Invariant: each deleted file stands in an audit record with its SHA-256. What is to be deleted is
noted beside it first, so that whoever goes on after a crash can say so too.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quickmatch.core.files import replacing
from quickmatch.core.settings import Home
from quickmatch.observe import audit
from quickmatch.store.documents import Job, JobState, Json
from quickmatch.store.protocol import Store

logger = logging.getLogger(__name__)
ROWS = "rows.jsonl"  # copied from the user's file
SEQUENCES = "sequences.jsonl"
_NOTED = "deleting.json"  # what `forget` is about to delete, or has deleted
DELETED = "draft-data-deleted"
MIN_OUTPUT_TOKENS = 2  # the first is the target's, a draft begins behind it
_ENDED = [s.value for s in JobState if s.is_final]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and what the target answers to it, the end-of-turn token included."""

    prompt: list[int]
    output: list[int]

    @property
    def token_ids(self) -> list[int]:
        """All of it."""
        return self.prompt + self.output

    def __len__(self) -> int:
        return len(self.prompt) + len(self.output)


@dataclass(frozen=True, slots=True)
class Collected:
    """Sequences to learn from and, held back, sequences to measure on."""

    train: list[TokenSequence]
    held: list[TokenSequence]


def open_folder(store: Store, home: Home, job: Job) -> Path:
    """Return the job's data folder, made if need be, readable by its owner alone."""
    folder = home.jobs.absolute() / job.id / "data"
    if job.data_path != str(folder):
        store.update(Job, job.id, lambda j: setattr(j, "data_path", str(folder)))
        job.data_path = str(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_sequences(folder: Path, collected: Collected) -> None:
    """Write all sequences at once: the file is whole or not there. Raises OSError."""
    with replacing(folder / SEQUENCES) as file:
        for held in (False, True):
            file.writelines(_line(s, held).encode("ascii") for s in _of(collected, held))


def read_sequences(folder: Path) -> Collected | None:
    """Return what was collected before, or None."""
    try:
        lines = (folder / SEQUENCES).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    collected = Collected([], [])
    for line in lines:
        row = json.loads(line)
        _of(collected, row["held"]).append(TokenSequence(row["prompt"], row["output"]))
    return collected


def data_hash(collected: Collected) -> str:
    """Return a hash of all sequences, in order."""
    digest = hashlib.sha256()
    for held in (False, True):
        for sequence in _of(collected, held):
            digest.update(_line(sequence, held).encode())
    return digest.hexdigest()


def forget(store: Store, job: Job, *, actor: str) -> None:
    """Delete what was collected for a job and write it into the audit log. Nothing there: nothing.

    Raises OSError if a file cannot be deleted: then the job still names the folder.
    """
    if not job.data_path:
        return
    folder = Path(job.data_path)
    noted = _note(folder)
    for path in _files(folder):
        path.unlink(missing_ok=True)
    if noted:
        files: Json = {"files": noted, "source": source_of(job), "state": str(job.state)}
        files |= {"model": job.base_model, "adapter": job.adapter}
        audit.append(store, actor=actor, action=DELETED, subject=job.id, detail=files)
        logger.info("deleted %d files of collected data", len(noted))
    shutil.rmtree(folder, ignore_errors=True)
    if store.get(Job, job.id) is not None:
        store.update(Job, job.id, lambda j: setattr(j, "data_path", ""))
    job.data_path = ""


def sweep(store: Store) -> None:
    """Forget what ended jobs left behind: their process was killed, or they never ran."""
    where = {"data_path": {"$gt": ""}, "state": {"$in": _ENDED}}
    for job in store.find(Job, where):
        if not job.settings.get("keep_data"):
            forget(store, job, actor=f"job {job.id}")


def source_of(job: Job) -> str:
    """Say where a job's data comes from: `dataset:NAME`, `file:NAME` or `traces:FILTER`."""
    if job.trace_filter is not None:
        return f"traces:{json.dumps(job.trace_filter, sort_keys=True, default=str)}"
    return f"file:{job.file}" if job.file else f"dataset:{job.dataset}"


def _files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.glob("*") if p.is_file() and not p.name.startswith(_NOTED))


def _note(folder: Path) -> list[Json]:
    """Return what to say of all files that are here, or were when a deletion began; note it."""
    files: list[Json] = []
    with contextlib.suppress(OSError, ValueError):
        files = json.loads((folder / _NOTED).read_bytes())
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):  # another process is faster
            described = _described(path)
            if described not in files:
                files.append(described)
    if files:
        # A full disk is no reason to keep the data.
        with contextlib.suppress(OSError), replacing(folder / _NOTED) as file:
            file.write(json.dumps(files).encode())
    return files


def _described(path: Path) -> Json:
    content = path.read_bytes()
    return {
        "name": path.name,
        "num_bytes": len(content),
        "num_lines": content.count(b"\n"),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _of(collected: Collected, held: bool) -> list[TokenSequence]:
    return collected.held if held else collected.train


def _line(sequence: TokenSequence, held: bool) -> str:
    row = {"held": held, "prompt": sequence.prompt, "output": sequence.output}
    return json.dumps(row, separators=(",", ":")) + "\n"
