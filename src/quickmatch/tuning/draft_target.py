"""The target of a draft job, loaded as it is served: the engine's own runner, its adapter beside.

Owns which version of the model and of the adapter a job learns from, and in which form: that of the
deployment that the head is for (weights of few bits, keys and values of 8, ranks of adapters). One
target serves the whole job: it answers prompts, gives features, and decodes at the gate, one after
the other.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from quickmatch.core.shipped import model_source
from quickmatch.core.speculation_settings import SpeculationSettings
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
    max_length: int  # tokens of a prompt and its answer, that a head can draft for where it serves

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
    served = dict(job.engine)
    # Bounds on rows here, and no demand on the memory, of which the job may have less than the
    # server. A sequence that outgrows max_kv_tokens gives KV up, and no head drafts for it then.
    limits = [served.pop(name, None) for name in ("max_model_len", "max_kv_tokens")]
    for name in ("dtype", "device"):
        if (chosen := getattr(settings, name)) != "auto":
            served[name] = chosen
    base = require(store, Model, job.base_model)
    adapter = require(store, Model, job.adapter) if job.adapter else None
    config = EngineConfig(
        **served,
        model=model_source(base.path),
        max_num_seqs=_MAX_NUM_SEQS,
        max_adapters=1,
        num_threads=num_threads,
        speculation=_speculation(store, job),
    )
    runner = ModelRunner(config)
    engine = Engine(runner, replace(config, speculation=SpeculationConfig(drafters=("suffix",))))
    if adapter:
        engine.load_adapter(adapter.version_id, adapter.path)
    max_length = min(filter(None, (runner.max_model_len, *limits)))
    return Target(base, adapter, config, runner, engine, max_length)


def _speculation(store: Store, job: Job) -> SpeculationConfig:
    """Return the deployment's. Raises ConfigError on settings that this version does not know."""
    values = SpeculationSettings.parse(job.speculation).engine_values()
    if source := values.get("draft_model"):
        draft_model = store.get(Model, source)
        values["draft_model"] = model_source(draft_model.path if draft_model else source)
    return SpeculationConfig(**values)


def deployed_head(store: Store, job: Job) -> Candidate | None:
    """Return the head that drafts for the job's adapter now: its own, else the base model's."""
    deployment = store.get(Deployment, job.deployment)
    if deployment is None:
        return None
    version_id = deployment.drafts.get(job.adapter) or deployment.drafts.get("", "")
    name, _, version = version_id.rpartition("@")
    draft = store.get(Model, name)
    if draft is None or not version.isdigit():
        return None
    return Candidate("current", version_id, Path(draft.path_of(int(version))))
