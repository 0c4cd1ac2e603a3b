"""A draft job's target is the model as the deployment that the head is for serves it."""

import pytest
import torch

from quickmatch.core.errors import ConfigError, NotFound
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState, Span, StepBatch
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.store.documents import Deployment, Job, Model, ModelKind
from quickmatch.store.protocol import require
from quickmatch.tuning.draft_jobs import create_draft
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.draft_target import deployed_head, load_target

# peft 0.21 asks transformers for a property that transformers 5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

LORA_RANK = 96  # above what an engine takes unless it is told


@pytest.fixture
def deploy(store, base):
    def make(name, **fields):
        fields = {"model": base.id, "created_at": 1.0} | fields
        store.insert(Deployment(id=name, **fields))

    return make


@pytest.fixture
def create(store, home, base, dataset):
    def make(model=base.id, **given):
        output = f"head-{store.count(Job)}"
        job = create_draft(
            store, home, model=model, dataset=dataset.id, output_draft=output, **given
        )
        return require(store, Job, job.id)

    return make


@pytest.fixture
def wide(store, base, tiny_folder, tmp_path):
    """An adapter of a high rank."""
    import peft
    from transformers import LlamaForCausalLM

    settings = peft.LoraConfig(r=LORA_RANK, target_modules=["q_proj"])
    peft.get_peft_model(LlamaForCausalLM.from_pretrained(tiny_folder), settings).save_pretrained(
        tmp_path / "wide"
    )
    model = Model(
        id="wide", created_at=1.0, model_kind=ModelKind.ADAPTER, base_model=base.id,
        path=str(tmp_path / "wide"),
    )  # fmt: skip
    store.insert(model)
    return model


def load(store, job, **settings):
    return load_target(store, job, DraftSettings.parse(settings), num_threads=1)


def logits(runner):
    asks = SampleState(SamplingParams(), 0, [5, 6, 7])
    return runner.logits(StepBatch([5, 6, 7], [0, 1, 2], [0, 1, 2], [Span(0, 3, 0, [0], -1, asks)]))


def test_it_computes_as_the_deployment_does_in_memory_of_its_own(store, create, deploy, base):
    before = load(store, create(), dtype="float32")
    deploy("live", engine={"quantization": "int8", "max_num_seqs": 1, "kv_memory_bytes": 1 << 12})
    job = create()
    assert (job.deployment, job.engine) == ("live", {"quantization": "int8"})
    served = load(store, job, dtype="float32")
    alike = EngineConfig(
        model=base.path, quantization="int8", dtype="float32", num_threads=1, max_num_seqs=1
    )
    assert torch.equal(logits(served.runner), logits(ModelRunner(alike)))
    assert not torch.equal(logits(served.runner), logits(before.runner))
    assert served.runner.num_blocks == before.runner.num_blocks


def test_it_takes_the_adapters_that_the_deployment_takes(store, create, deploy, wide):
    deploy("live", engine={"max_lora_rank": LORA_RANK})
    target = load(store, create(wide.id))
    assert (target.version_id, target.adapter_row) == ("wide@1", 0)


@pytest.mark.parametrize(
    ("engine", "longest"),
    [({}, 128), ({"max_model_len": 96}, 96), ({"max_kv_tokens": 64, "max_model_len": 80}, 64)],
)
def test_rows_are_no_longer_than_what_a_head_drafts_for(store, create, deploy, engine, longest):
    deploy("live", engine=engine)
    assert load(store, create()).max_length == longest


def test_what_the_job_goes_by_stays_when_the_deployment_changes(store, create, deploy):
    deploy("live", engine={"quantization": "int8"}, drafts={"": "old@1"})
    job = create()
    store.delete(Deployment, "live")
    assert load(store, job).config.quantization == "int8"
    assert deployed_head(store, job) is None


def test_the_gate_drafts_as_the_deployment_does(store, create, deploy, base):
    assert load(store, create()).config.speculation == SpeculationConfig()
    deploy("live", speculation={"drafters": "suffix,draft_model", "draft_model": base.id,
                                "max_depth": 4, "adapt_min_requests": 9})  # fmt: skip
    job = create()
    assert "adapt_min_requests" not in job.speculation
    target = load(store, job)
    assert target.config.speculation == SpeculationConfig(
        drafters=("suffix", "draft_model"), draft_model=base.path, max_depth=4
    )
    assert target.runner.can_draft(-1, is_watched=False)  # its draft model is loaded


def test_a_job_is_for_one_deployment_of_its_model(store, create, deploy):
    assert create().deployment == ""  # nothing serves the model yet
    deploy("live")
    deploy("stopped", wanted=False)
    deploy("other", model="another")
    assert create().deployment == "live"
    deploy("few-bits", engine={"quantization": "int4"})
    num_jobs = store.count(Job)
    with pytest.raises(ConfigError, match=r"'tiny' is served by \S+, \S+; say with --deployment"):
        create()
    with pytest.raises(ConfigError, match="deployment 'other' serves 'another', not 'tiny'"):
        create(deployment="other")
    with pytest.raises(NotFound, match="no deployment named 'gone'"):
        create(deployment="gone")
    assert store.count(Job) == num_jobs
    assert create(deployment="few-bits").engine == {"quantization": "int4"}
    assert create(deployment="stopped").deployment == "stopped"


def test_what_stands_is_what_drafts_on_that_deployment(store, create, deploy, base, wide, tmp_path):
    for name in ("old", "wide-head"):
        store.insert(
            Model(id=name, created_at=1.0, model_kind=ModelKind.DRAFT, base_model=base.id,
                  path=str(tmp_path / name / "1"))
        )  # fmt: skip
    deploy("first", drafts={"": "old@1"})
    deploy("second")
    deploy("third", drafts={"": "old@1", "wide": "wide-head@1"})
    found = {
        (deployment, model): deployed_head(store, create(model, deployment=deployment))
        for deployment in ("first", "second", "third")
        for model in (base.id, wide.id)
    }
    assert {place: head and head.draft for place, head in found.items()} == {
        ("first", "tiny"): "old@1", ("first", "wide"): "old@1",  # the base's drafts for it
        ("second", "tiny"): None, ("second", "wide"): None,
        ("third", "tiny"): "old@1", ("third", "wide"): "wide-head@1",
    }  # fmt: skip
    assert found["first", "wide"].folder == tmp_path / "old" / "1"
