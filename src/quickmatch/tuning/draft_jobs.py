"""Creating draft jobs: what is named must exist and fit, and a file's rows must be whole.

Owns the checks before a draft job's document is written, and which of a deployment's settings it
takes over. Loads no torch; `draft_job` is what the job does.
"""

import contextlib
import getpass
from pathlib import Path

from quickmatch.core.clock import wall
from quickmatch.core.errors import ConfigError, NotFound
from quickmatch.core.ids import new_id
from quickmatch.core.settings import Home
from quickmatch.core.speculation_settings import engine_part
from quickmatch.store.documents import Dataset, Deployment, Job, Model, ModelKind
from quickmatch.store.protocol import Filter, Store, require
from quickmatch.store.versions import require_draft
from quickmatch.tuning import draft_data
from quickmatch.tuning.chat_rows import read_chat_rows
from quickmatch.tuning.datasets import verify
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.job_checks import check_base, check_output

# Of EngineConfig, what changes which tokens the target says and which it takes. The rest is about
# memory and many requests at once, of which a job has its own.
_OF_TARGET = (
    "dtype",
    "quantization",
    "device",
    "block_size",
    "max_model_len",
    "kv_cache_dtype",
    "max_kv_tokens",
    "max_lora_rank",
)


def create_draft(
    store: Store,
    home: Home,
    *,
    model: str,
    adapter: str = "",
    dataset: str = "",
    file: Path | None = None,
    trace_filter: Filter | None = None,
    output_draft: str,
    deployment: str = "",
    settings: DraftSettings | None = None,
) -> Job:
    """Check everything, then write the job's document. It is not started.

    model: a base model's name, or an adapter's for it on its base. deployment: where the head is to
    draft; left out, the one that serves the base model, if one does. Exactly one of dataset (a
    name), file (chat JSONL; rows may end before the answer) and trace_filter ({}: all recorded
    calls) says what to learn from; a file's rows are copied, and deleted when the job ends.
    Raises NotFound, ConfigError, DatasetError or Conflict; nothing is created then.
    """
    chosen = settings or DraftSettings.parse({})
    base, adapter = _target(store, model, adapter)
    if (bool(dataset), file is not None, trace_filter is not None).count(True) != 1:
        raise ConfigError("give one of dataset, file and trace_filter, to learn from")
    if dataset:
        verify(require(store, Dataset, dataset))
    _check_warm_start(store, chosen.warm_start_from, base)
    served = _deployment(store, deployment, base)
    engine, speculation = (served.engine, served.speculation) if served else ({}, {})
    job = Job(
        id=new_id("draftj"),
        created_at=wall(),
        job_type="draft",
        base_model=base.id,
        adapter=adapter,
        dataset=dataset,
        file=file.name if file else "",
        trace_filter=trace_filter,
        output_model=output_draft,
        deployment=served.id if served else "",
        engine={name: engine[name] for name in _OF_TARGET if name in engine},
        speculation=engine_part(speculation),
        settings=chosen.model_dump(mode="json"),
    )
    check_output(store, job)
    lines = _rows_of(file) if file else []
    store.insert(job)
    if file:
        folder = draft_data.open_folder(store, home, job)
        (folder / draft_data.ROWS).write_text("".join(lines), encoding="utf-8")
    return require(store, Job, job.id)


def user() -> str:
    """Return who is at the command line, for the audit log."""
    with contextlib.suppress(OSError, KeyError):
        return f"user {getpass.getuser()}"
    return "user unknown"


def _target(store: Store, name: str, adapter: str) -> tuple[Model, str]:
    """Return the base model and the adapter's name, "" for none."""
    if not adapter:
        found = require(store, Model, name)
        if found.model_kind is not ModelKind.ADAPTER:
            return check_base(store, name), ""
        return check_base(store, found.base_model), found.id
    base, trained = check_base(store, name), require(store, Model, adapter)
    if trained.model_kind is not ModelKind.ADAPTER:
        raise ConfigError(f"{adapter!r} is a {trained.model_kind} model, not an adapter")
    if not trained.is_made_for(base):
        raise ConfigError(
            f"adapter {adapter!r} was trained on {trained.base_model!r}, not on {name!r}; "
            f"give that as the model"
        )
    return base, adapter


def _deployment(store: Store, name: str, base: Model) -> Deployment | None:
    if name:
        named = require(store, Deployment, name)
        if named.model != base.id:
            raise ConfigError(
                f"deployment {name!r} serves {named.model!r}, not {base.id!r}; give one that does"
            )
        return named
    serving = store.find(Deployment, {"model": base.id, "wanted": True})
    found = {deployment.id: deployment for deployment in serving}
    if len(found) > 1:
        raise ConfigError(
            f"{base.id!r} is served by {', '.join(found)}; say with --deployment for which of them "
            "the head is"
        )
    return next(iter(found.values()), None)


def _check_warm_start(store: Store, spelled: str, base: Model) -> None:
    if not spelled:
        return
    draft, _ = require_draft(store, spelled)
    if not draft.is_made_for(base):
        raise ConfigError(
            f"warm_start_from {spelled!r} is a draft of {draft.base_model!r}, not of {base.id!r}; "
            "name one of that, or leave it out to start afresh"
        )


def _rows_of(file: Path) -> list[str]:
    if not file.is_file():
        raise NotFound(f"there is no file {file}; give a chat JSONL file")
    return [row.to_json() + "\n" for row in read_chat_rows(file, prompts_too=True)]
