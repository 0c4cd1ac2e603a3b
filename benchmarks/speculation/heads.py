"""The trained head of a target: made by the product's own draft job, as an operator would.

The job gets prompts alone; the target writes the answers itself. Nothing that is measured later is
among them. It runs in a home of its own; the head's folder is kept beside the target.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speculation.workloads import Item
from examples.credit_cards.screen import Screen
from quickmatch.core.clock import wall
from quickmatch.core.settings import Home
from quickmatch.store.documents import Job, JobState, Model, ModelKind
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store, require
from quickmatch.tuning import jobs
from quickmatch.tuning.draft_jobs import create_draft
from quickmatch.tuning.draft_settings import DraftSettings

_METRICS = "metrics.json"


class HeadFailed(Exception):
    """The draft job ended without a head; the message says why."""


def make_head(
    target: Path, items: Sequence[Item], settings: dict[str, Any], screen: Screen
) -> Path:
    """Return the folder of a head for the target; trained now (minutes) unless it is there.

    Raises HeadFailed with the job's own reason.
    """
    chosen = DraftSettings.parse({"force": True, **settings})
    folder = target / f"head-{_fingerprint(chosen, items)}"
    if folder.is_dir():
        return folder
    root = target / f"home-{os.getpid()}"  # another run may make the same head at the same time
    home = Home(root)
    root.mkdir()
    prompts = root / "prompts.jsonl"
    lines = [json.dumps({"messages": list(item.messages)}) + "\n" for item in items]
    prompts.write_text("".join(lines), encoding="utf-8")
    store = open_store(home)
    try:
        job = _run(store, home, target, prompts, chosen, screen)
        made = require(store, Model, job.output_model)
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(made.path, part)
        (part / _METRICS).write_text(json.dumps(job.metrics, indent=1), encoding="utf-8")
    finally:
        store.close()
        shutil.rmtree(root, ignore_errors=True)
    return part.rename(folder)


def metrics_of(head: Path) -> dict[str, Any]:
    """Return what the job measured of its head."""
    found: dict[str, Any] = json.loads((head / _METRICS).read_text(encoding="utf-8"))
    return found


def _run(
    store: Store, home: Home, target: Path, prompts: Path, settings: DraftSettings, screen: Screen
) -> Job:
    base = Model(
        id="target", created_at=wall(), model_kind=ModelKind.BASE, version=1, path=str(target)
    )
    store.insert(base)
    job = create_draft(
        store, home, model=base.id, file=prompts, output_draft="head", settings=settings
    )
    jobs.start(store, home, job.id)
    try:
        job = _follow(store, job, screen, target.name)
    except BaseException:  # above all Ctrl-C: the job's process would go on by itself
        jobs.cancel(store, job.id)
        raise
    if job.state is not JobState.COMPLETED:
        log = jobs.log_path(home, job.id).read_text(errors="replace").strip().splitlines()
        raise HeadFailed(f"draft job {job.state}: {job.error or (log or ['no log'])[-1]}")
    return job


def _follow(store: Store, job: Job, screen: Screen, name: str) -> Job:
    with screen.bar(f"head of {name}", 1) as bar:
        for state in jobs.watch(store, job.id):
            job = state
            bar.show(job.progress.step, job.progress.phase, total=job.progress.total_steps)
    return job


def _fingerprint(settings: DraftSettings, items: Sequence[Item]) -> str:
    told = settings.model_dump(mode="json", exclude={"num_threads"})
    prompts = sorted(json.dumps(item.messages) for item in items)
    return hashlib.sha256(json.dumps([told, prompts]).encode()).hexdigest()[:12]
