"""What a draft job does, from its document to a published head.

Owns the order: load the target, collect, train, measure at the gate, publish. A head that does not
beat what stands is not published: the job is complete all the same, and says so. States are
`job_process`, and so is the deletion of what was collected.
"""

import hashlib
import json
import logging
import math
import shutil
from pathlib import Path

from quickmatch.core.settings import Home
from quickmatch.engine.speculation.head_folder import write_head
from quickmatch.store.documents import Job, Json
from quickmatch.store.protocol import Store
from quickmatch.store.versions import require_draft
from quickmatch.tuning.checkpoint import Checkpoint
from quickmatch.tuning.draft_collect import collect
from quickmatch.tuning.draft_data import Collected, data_hash, source_of
from quickmatch.tuning.draft_features import TargetFeatures
from quickmatch.tuning.draft_gate import Arm, Candidate, Gate, Verdict, judge
from quickmatch.tuning.draft_head import DraftHead
from quickmatch.tuning.draft_optimizer import LEARNING_RATE
from quickmatch.tuning.draft_parts import RowBudget
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.draft_start import earlier_head, new_head
from quickmatch.tuning.draft_target import Target, deployed_head, load_target
from quickmatch.tuning.draft_train import DraftRun, simulate
from quickmatch.tuning.draft_vocab import draft_vocab
from quickmatch.tuning.job_report import JobReport
from quickmatch.tuning.jobs import HEAD, job_folder
from quickmatch.tuning.load import set_threads
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.publish import publish_draft
from quickmatch.tuning.sft import Stopped

logger = logging.getLogger(__name__)
_WARMUP_SHARE = 0.05
_AUTO_STEPS = 125  # where the data is little; of more, each sequence is met once
_MAX_AUTO_EPOCHS = 20


def run_draft(store: Store, home: Home, job: Job, report: JobReport) -> Json:
    """Train, measure, publish; return the metrics. Raises Stopped when asked to stop."""
    settings = DraftSettings.parse(job.settings)
    report.progress = job.progress.model_copy()  # a resumed run may have no step left to tell
    report.on_phase("loading")
    num_threads = set_threads(settings.num_threads)
    target = load_target(store, job, settings, num_threads)
    collected = collect(store, home, job, settings, target, report)
    if report.should_stop():
        raise Stopped
    head = _head(store, settings, target, collected)
    features = TargetFeatures(
        target.runner,
        adapter_row=target.adapter_row,
        aux_layers=head.config.aux_layers,
        draft_ids=head.draft_ids,
        budget=RowBudget(settings.max_batch_rows, settings.unroll_steps),
    )
    plan = _plan(settings, len(collected.train))
    logger.info("%s; %d threads", plan, num_threads)
    report.progress.total_steps = plan.total_steps
    report.steps_per_epoch = plan.steps_per_epoch
    state = DraftRun(
        head=head,
        features=features,
        train=collected.train,
        settings=settings,
        plan=plan,
        folder=job_folder(home, job.id),
        run_key=_run_key(store, job, target, collected),
        listener=report,
    ).run()
    report.on_phase("evaluating")
    foretold = simulate(
        head,
        features,
        collected.held,
        num_steps=settings.unroll_steps,
        batch_size=settings.batch_size,
    )
    report.on_eval(state.step, foretold.loss)
    folder = _write(job_folder(home, job.id) / HEAD, head, target)
    arms, verdict = _gate(store, job, settings, target, collected, folder, report)
    metrics = _metrics(state, report, head, num_threads) | {
        "target": target.version_id,
        "data": f"{len(collected.train)} sequences of {source_of(job)}, "
        f"{len(collected.held)} held back",
        "simulated_acceptance": [round(a, 4) for a in foretold.acceptance],
        "simulated_accepted_length": round(foretold.accepted_length, 4),
        "eval_loss": foretold.loss,
        "gate": {arm.name: arm.as_json() for arm in arms},
        "passed": verdict.passed,
    }
    return metrics | _publish(store, home, job, settings, target, folder, verdict, report)


def _head(store: Store, settings: DraftSettings, target: Target, collected: Collected) -> DraftHead:
    ids, reason = draft_vocab(collected.train, target.runner.vocab_size, settings.draft_vocab_size)
    logger.info("draft_vocab_size %d: %s", len(ids), reason)
    if not settings.warm_start_from:
        return new_head(target.runner, ids, settings.seed)
    earlier, version = require_draft(store, settings.warm_start_from)
    return earlier_head(target.runner, Path(earlier.path_of(version)), ids, settings.seed)


def _plan(settings: DraftSettings, num_sequences: int) -> Plan:
    per_epoch = math.ceil(num_sequences / settings.batch_size)
    total = per_epoch * (settings.epochs or 1)
    if settings.epochs is None:
        total = min(max(total, _AUTO_STEPS), per_epoch * _MAX_AUTO_EPOCHS)
    total = min(total, settings.max_steps or total)
    return Plan(
        num_rows=num_sequences,
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=max(1, round(total * _WARMUP_SHARE)),
        eval_every=total,
        learning_rate=settings.learning_rate or LEARNING_RATE,
    )


def _run_key(store: Store, job: Job, target: Target, collected: Collected) -> str:
    """Return a hash of all that a run's result depends on."""
    parts = [job.settings, job.engine, target.base.path, target.base.version_id, target.adapter_id]
    if job.settings.get("warm_start_from"):
        earlier, version = require_draft(store, job.settings["warm_start_from"])
        parts.append(f"{earlier.id}@{version}")
    parts.append(data_hash(collected))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, head: DraftHead, target: Target) -> Path:
    """Write the head as it will be published."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
    write_head(
        folder,
        head.config,
        head.tensors(target.runner.dtype),
        format="eagle3",
        target_name=str(target.runner.folder),
        target_architecture=target.runner.model_config.architecture,
    )
    return folder


def _gate(
    store: Store,
    job: Job,
    settings: DraftSettings,
    target: Target,
    collected: Collected,
    folder: Path,
    report: JobReport,
) -> tuple[list[Arm], Verdict]:
    gate = Gate(
        runner=target.runner,
        config=target.config,
        adapter=target.adapter_id,
        adapter_path=target.adapter_path,
        depth=settings.unroll_steps,
        max_tokens=settings.max_output_tokens,
        max_length=target.max_length,
        should_stop=report.should_stop,
    )
    candidates = [Candidate("new", "", folder)]
    current = deployed_head(store, job)
    if current is not None:
        candidates.insert(0, current)
    arms = gate.measure(collected.held, collected.train, candidates)
    if report.should_stop():
        raise Stopped
    return arms, judge(arms)


def _publish(
    store: Store,
    home: Home,
    job: Job,
    settings: DraftSettings,
    target: Target,
    folder: Path,
    verdict: Verdict,
    report: JobReport,
) -> Json:
    """Publish a head that passed, or is forced; say what became of it."""
    if not (verdict.passed or settings.force):
        logger.info("not published: %s", verdict.reason)
        return {"message": f"not published: {verdict.reason}; --force publishes it anyway"}
    report.on_phase("saving")
    description = f"drafts for {target.version_id}, from {source_of(job)}"
    model = publish_draft(store, home, job, target.base, head=folder, description=description)
    report.write()
    how = "published" if verdict.passed else "published by --force"
    return {
        "draft_version": model.version_id,
        "message": f"{how} as {model.version_id}: {verdict.reason}",
    }


def _metrics(state: Checkpoint, report: JobReport, head: DraftHead, num_threads: int) -> Json:
    return {
        "num_steps": state.step,
        "num_tokens": state.num_tokens,
        "train_s": round(state.train_s, 3),
        "tokens_per_s": round(state.num_tokens / max(state.train_s, 1e-9), 1),
        "num_threads": num_threads,
        "train_loss": report.progress.loss,
        "draft_vocab_size": head.config.draft_vocab_size,
        "num_parameters": sum(p.numel() for p in head.parameters()),
    }
