"""What a job may be told to do: checks of the models that it names, before it is created.

Owns which base models can be trained on and which output names are free. Loads no torch.
"""

from pathlib import Path

from quickmatch.core.errors import ConfigError, Conflict
from quickmatch.core.ids import check_name
from quickmatch.core.shipped import model_source
from quickmatch.store.documents import Job, JobState, Model, ModelKind
from quickmatch.store.protocol import Store, require

_BUSY = [s.value for s in (JobState.CREATED, JobState.RUNNING, JobState.CANCELLING)]
_OUTPUT_KIND = {"sft": ModelKind.ADAPTER, "draft": ModelKind.DRAFT}


def check_base(store: Store, name: str) -> Model:
    """Return a base model whose weights are here. Raises NotFound, ConfigError."""
    base = require(store, Model, name)
    if base.model_kind == ModelKind.ADAPTER:
        raise ConfigError(f"{name!r} is an adapter, not a base model; use warm_start_from for it")
    if base.model_kind == ModelKind.DRAFT:
        raise ConfigError(f"{name!r} is a draft of {base.base_model!r}; name that model instead")
    if base.model_kind == ModelKind.REMOTE:
        raise ConfigError(f"{name!r} is served by a remote provider; its weights are not here")
    folder = Path(model_source(base.path))
    if folder.is_absolute() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"base model {name!r}: {folder} holds no config.json; restore the folder or "
            "register the model again"
        )
    return base


def check_output(store: Store, job: Job) -> None:
    """Raise Conflict unless the job may write a version of its output model."""
    name, kind = check_name(job.output_model, "output model"), _OUTPUT_KIND[job.job_type]
    model = store.get(Model, name)
    wanted = (kind, job.base_model, job.adapter)
    if model is not None and (model.model_kind, model.base_model, model.adapter) != wanted:
        of = f"{job.adapter!r} on {job.base_model!r}" if job.adapter else repr(job.base_model)
        raise Conflict(
            f"output model {name!r} exists and is no {kind} of {of}; choose another name"
        )
    for other in store.find(Job, {"output_model": name, "state": {"$in": _BUSY}}):
        if other.id != job.id:
            raise Conflict(
                f"job {other.id} ({other.state}) will write {name!r} too; cancel it or wait"
            )
