"""The target of a draft job, loaded as it is served: the engine's own runner, its adapter beside.

Owns which version of the model and of the adapter a job learns from. One target serves the whole
job: it answers prompts, gives features, and decodes at the gate, one after the other.
"""

from dataclasses import dataclass
from pathlib import Path

from quickmatch.core.shipped import model_source
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.store.documents import Deployment, Job, Model
from quickmatch.store.protocol import Store, require
from quickmatch.tuning.draft_gate import Candidate
from quickmatch.tuning.draft_settings import DraftSettings

_MAX_NUM_SEQS = 32  # answered together


@dataclass(frozen=True, slots=True)
class Target:
    """A loaded model, and the names of what is loaded."""

    base: Model
    adapter: Model | None
    config: EngineConfig
    runner: ModelRunner
    engine: Engine  # with the adapter loaded; only used to answer prompts

    @property
    def version_id(self) -> str:
        """What traces name it by."""
        return (self.adapter or self.base).version_id

    @property
    def adapter_id(self) -> str:
        """The adapter's version id, "" for none."""
        return self.adapter.version_id if self.adapter else ""

    @property
    def adapter_path(self) -> str:
        """The adapter's folder, "" for none."""
        return self.adapter.path if self.adapter else ""

    @property
    def adapter_row(self) -> int:
        """The adapter's row in the runner."""
        return self.runner.adapter_row(self.adapter_id) if self.adapter else -1


def load_target(store: Store, job: Job, settings: DraftSettings, num_threads: int) -> Target:
    """Load base and adapter in their current versions. Raises ModelLoadError, NotFound."""
    base = require(store, Model, job.base_model)
    adapter = require(store, Model, job.adapter) if job.adapter else None
    config = EngineConfig(
        model=model_source(base.path),
        dtype=settings.dtype,
        device=settings.device,
        max_num_seqs=_MAX_NUM_SEQS,
        max_adapters=1,
        num_threads=num_threads,
        speculation=SpeculationConfig(drafters=("suffix",)),
    )
    runner = ModelRunner(config)
    engine = Engine(runner, config)
    if adapter:
        engine.load_adapter(adapter.version_id, adapter.path)
    return Target(base, adapter, config, runner, engine)


def deployed_head(store: Store, job: Job) -> Candidate | None:
    """Return the head that drafts for the job's model and adapter now, if a deployment has one."""
    for deployment in store.find(Deployment, {"model": job.base_model, "wanted": True}):
        version_id = deployment.drafts.get(job.adapter)
        if version_id:
            name, _, version = version_id.rpartition("@")
            draft = store.get(Model, name)
            if draft is not None and version.isdigit():
                return Candidate("current", version_id, Path(draft.path_of(int(version))))
    return None
