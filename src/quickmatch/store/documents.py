"""What is stored: one pydantic model a kind of document.

Documents are the only way that packages learn of one another's work: the command line writes
what it wants (a deployment's desired adapters), the fleet reads that, acts, and writes what is
(their state). A field says in its comment who writes it. Times are seconds since the epoch.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from quickmatch.store.adaptation import Adaptation

Json = dict[str, Any]


class Document(BaseModel):
    """Base of all kinds. `id` is unique within the kind; `revision` counts its writes."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)
    kind: ClassVar[str]
    indexed: ClassVar[tuple[str, ...]] = ()  # fields that filters use often

    id: str
    created_at: float
    revision: int = 0  # written by the store: 1 after insert, +1 each update


class ModelKind(StrEnum):
    """What a model is made of."""

    BASE = "base"  # a Hugging Face folder
    ADAPTER = "adapter"  # a PEFT folder, to be used with `base_model`
    REMOTE = "remote"  # another provider's, by URL
    DRAFT = "draft"  # a trained head that drafts for `base_model`, with `adapter` if one is named


class Model(Document):
    """A model that can be deployed. `id` is its name; a new training of it is a new version."""

    kind: ClassVar[str] = "model"
    indexed: ClassVar[tuple[str, ...]] = ("model_kind", "base_model")

    model_kind: ModelKind
    version: int = 1
    path: str = ""  # folder of the current version (base: folder or hub id)
    elsewhere: dict[int, str] = Field(default_factory=dict)  # folders of imported versions
    base_model: str = ""  # adapter, draft: name of the model that it was trained on
    adapter: str = ""  # draft: name of the adapter whose answers it foretells; "": the base's own
    quantized_from: str = ""  # base: name of the model whose adapters and drafts fit it, too
    base_path: str = ""  # adapter: that model's folder, to tell two of the same name apart
    remote_url: str = ""  # remote: OpenAI-compatible base URL, ending in /v1
    remote_model: str = ""  # remote: the name there
    api_key_env: str = ""  # remote: the environment variable that holds the key
    description: str = ""
    source_job: str = ""
    size_bytes: int = 0

    @property
    def version_id(self) -> str:
        """Return what caches and traces are keyed by: `name@version`."""
        return f"{self.id}@{self.version}"

    def is_made_for(self, base: "Model") -> bool:
        """Whether an adapter or draft fits a base model: its own, or that one quantized."""
        return self.base_model in (base.id, base.quantized_from)

    def path_of(self, version: int) -> str:
        """Return the folder of a version: one that was trained here lies beside the others."""
        if version == self.version:
            return self.path
        return self.elsewhere.get(version) or str(Path(self.path).parent / str(version))


class Dataset(Document):
    """A validated dataset file in the home. `id` is its name."""

    kind: ClassVar[str] = "dataset"

    format: Literal["chat"] = "chat"
    path: str
    num_rows: int
    sha256: str
    source: str  # "file:NAME" or "traces:FILTER"
    description: str = ""


class JobState(StrEnum):
    """States of a job. CREATED, RUNNING → COMPLETED, FAILED, CANCELLED; INTERRUPTED → RUNNING."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"  # asked for; the job ends after its current step
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"  # its process died; `quickmatch resume job` goes on

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class Progress(BaseModel):
    """How far a job is. Written by the job's process about once a second."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None  # mean over the last steps, nats a token
    eval_loss: float | None = None
    acceptance: float | None = None  # draft jobs: share of tokens foretold, one ahead
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    phase: str = ""  # "loading", "answering", "training", "evaluating", "saving"


class Job(Document):
    """A background job. Settings are written once, by whoever creates it; the rest by the job."""

    kind: ClassVar[str] = "job"
    indexed: ClassVar[tuple[str, ...]] = ("job_type", "state", "output_model")

    job_type: Literal["sft", "draft"] = "sft"
    state: JobState = JobState.CREATED
    base_model: str
    adapter: str = ""  # draft: whose answers are learnt; "": the base model's
    dataset: str = ""  # a draft job may learn from `file` or `trace_filter` instead
    file: str = ""  # draft: name of the JSONL file whose rows are a copy in `data_path`
    trace_filter: Json | None = None  # draft: recorded calls that match
    data_path: str = ""  # draft: folder of what was collected for it, while that exists
    deployment: str = ""  # draft: whose head is trained; "": nothing serves the model yet
    engine: Json = Field(default_factory=dict)  # draft: that deployment's values, of the target
    speculation: Json = Field(default_factory=dict)  # draft: and those that the gate serves with
    evaluation_dataset: str = ""
    output_model: str
    settings: Json = Field(default_factory=dict)  # SftSettings or DraftSettings of tuning
    progress: Progress = Field(default_factory=Progress)
    error: str = ""  # why it FAILED, with the remedy
    pid: int = 0
    pid_started_at: float = 0.0  # the process's own start time: a pid can be taken again
    heartbeat_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    num_resumes: int = 0
    metrics: Json = Field(default_factory=dict)  # at the end: losses, tokens, seconds, memory


class JobStep(Document):
    """One logged step of a job, for its loss curve. `id` is `JOB/STEP`, step in 8 digits."""

    kind: ClassVar[str] = "job_step"
    indexed: ClassVar[tuple[str, ...]] = ("job",)

    job: str
    step: int
    loss: float | None = None
    eval_loss: float | None = None
    acceptance: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None


class AuditRecord(Document):
    """One thing that was done and has to be answered for. `id` is `number` in ten digits.

    Records are a chain: each holds the hash of the one before, so that none can be changed, put in
    or taken out of the middle unseen. Written and checked by observe/audit.
    """

    kind: ClassVar[str] = "audit_record"
    indexed: ClassVar[tuple[str, ...]] = ("action", "subject")

    number: int  # from 1, without gaps
    actor: str  # "job JOB_ID", "user NAME"
    action: str  # "draft-data-deleted"
    subject: str  # id of what it was done to
    detail: Json = Field(default_factory=dict)
    previous: str  # hash of record number - 1; of the first: zeros
    hash: str  # SHA-256 of all fields above


class DeploymentState(StrEnum):
    """States of a deployment, written by the fleet."""

    PENDING = "PENDING"  # no server has taken it up yet
    STARTING = "STARTING"
    READY = "READY"
    RESTARTING = "RESTARTING"  # its engine died and is being started again
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class AdapterStatus(BaseModel):
    """What the fleet made of one desired adapter."""

    model_config = ConfigDict(extra="forbid")

    version: int
    state: Literal["LOADING", "READY", "FAILED", "UNLOADING"]
    error: str = ""
    ready_at: float | None = None
    load_s: float | None = None


class DraftStatus(BaseModel):
    """What the fleet made of one desired head."""

    model_config = ConfigDict(extra="forbid")

    draft: str  # "name@version"
    adapter: str = ""  # version id of the adapter that it drafts for, "" for the base model
    state: Literal["LOADING", "READY", "FAILED"]
    error: str = ""
    ready_at: float | None = None
    load_s: float | None = None
    swap_s: float | None = None  # the pause between two steps that the swap made


class Deployment(Document):
    """A model being served. `id` is its name, by default its model's."""

    kind: ClassVar[str] = "deployment"
    indexed: ClassVar[tuple[str, ...]] = ("model", "state")

    # desired: written by the command line
    model: str  # name of a base or remote model
    wanted: bool = True  # False: stop it
    adapters: dict[str, int] = Field(default_factory=dict)  # adapter name -> version to serve
    trace: bool = False  # record calls without their asking
    engine: Json = Field(default_factory=dict)  # EngineConfig values that differ from defaults
    speculation: Json = Field(default_factory=dict)  # SpeculationSettings values that were set
    drafts: dict[str, str] = Field(default_factory=dict)  # adapter name, "": base -> "head@version"
    # actual: written by the fleet
    state: DeploymentState = DeploymentState.PENDING
    error: str = ""
    adapter_status: dict[str, AdapterStatus] = Field(default_factory=dict)
    draft_status: dict[str, DraftStatus] = Field(default_factory=dict)  # by adapter name, "": base
    server_pid: int = 0
    url: str = ""  # of the gateway that serves it, ending in /v1
    ready_at: float | None = None
    engine_info: Json = Field(default_factory=dict)  # wire.Ready, and the last wire.Stats
    num_restarts: int = 0
    adaptation: Adaptation = Field(default_factory=Adaptation)  # written by the adaptation loop


class Timings(BaseModel):
    """Milliseconds of one call, as the gateway saw them."""

    model_config = ConfigDict(extra="forbid")

    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float = 0.0


class Trace(Document):
    """One call, recorded because the deployment or the caller opted in."""

    kind: ClassVar[str] = "trace"
    indexed: ClassVar[tuple[str, ...]] = ("tenant", "model", "model_version", "trace_id")

    trace_id: str  # one id from request to dataset row, job and adapter
    tenant: str
    endpoint: Literal["chat", "completion"]
    model: str  # as asked for
    model_version: str  # as served, "name@version"
    deployment: str
    request: Json  # the OpenAI request body
    response: Json | None = None  # the OpenAI response body, also for streams
    usage: Json = Field(default_factory=dict)
    timings: Timings = Field(default_factory=Timings)
    cache: Literal["hit", "miss", "bypass"] = "bypass"
    stream: bool = False
    tags: dict[str, str] = Field(default_factory=dict)  # from `metadata` and the tag header
    status: int = 200
    error: str = ""


class CacheEntry(Document):
    """An exact-cache entry. `id` is the key's hash."""

    kind: ClassVar[str] = "cache_entry"
    indexed: ClassVar[tuple[str, ...]] = ("tenant", "model_version", "expires_at", "last_used_at")

    tenant: str
    model_version: str
    response: Json  # whatever the caching layer put in; a Completion in the gateway
    expires_at: float
    last_used_at: float
    num_hits: int = 0
    size_bytes: int = 0


DOCUMENT_KINDS: tuple[type[Document], ...] = (
    Model,
    Dataset,
    Job,
    JobStep,
    AuditRecord,
    Deployment,
    Trace,
    CacheEntry,
)
