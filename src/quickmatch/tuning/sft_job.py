"""What a supervised fine-tuning job does, from its document to a published adapter.

Owns the order: load, encode, train, publish. The loop itself is `sft`; states are `job_process`.
"""

import hashlib
import json
import logging
import random
from typing import Any

from quickmatch.core.errors import ConfigError, DatasetError
from quickmatch.core.settings import Home
from quickmatch.store.documents import Dataset, Job, Json, Model
from quickmatch.store.protocol import Store, require
from quickmatch.tuning.checkpoint import Checkpoint
from quickmatch.tuning.datasets import read_rows
from quickmatch.tuning.encode import Encoded, encode_rows
from quickmatch.tuning.job_report import JobReport
from quickmatch.tuning.jobs import job_folder
from quickmatch.tuning.load import Loaded, attach_adapter, load_base, set_threads
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.publish import publish_adapter
from quickmatch.tuning.settings import SftSettings, auto_learning_rate
from quickmatch.tuning.sft import SftRun, Stopped, add_lora

logger = logging.getLogger(__name__)
_CARVEOUT_SHARE = 0.1
_MAX_CARVEOUT = 200


def run_sft(store: Store, home: Home, job: Job, report: JobReport) -> Json:
    """Train and publish; return the metrics. Raises Stopped when asked to stop."""
    settings = SftSettings.parse(job.settings)
    report.on_phase("loading")
    num_threads = set_threads(settings.num_threads)
    base = require(store, Model, job.base_model)
    loaded = load_base(base.path, device=settings.device, dtype=settings.dtype)
    train, evaluation, notes = _encode(store, job, settings, loaded)
    if report.should_stop():
        raise Stopped
    loaded.choose_attention(max(len(r.token_ids) for r in [*train, *evaluation]))
    rate = _learning_rate(settings, loaded)
    tuned = _adapter(store, settings, loaded, base)
    plan = Plan.of(settings, len(train), len(evaluation), rate)
    logger.info("%s; %d threads", plan, num_threads)
    report.progress.total_steps = plan.total_steps
    report.steps_per_epoch = plan.steps_per_epoch
    run = SftRun(
        loaded=tuned,
        train=train,
        evaluation=evaluation,
        settings=settings,
        plan=plan,
        folder=job_folder(home, job.id),
        run_key=_run_key(store, job, base),
        listener=report,
    )
    state = run.run()
    report.on_phase("saving")
    model = publish_adapter(store, home, job, base, tuned.model)
    report.write()
    return {"model_version": model.version_id, "dtype": str(tuned.dtype).removeprefix("torch.")} | (
        _metrics(state, report, num_threads) | notes
    )


def _encode(
    store: Store, job: Job, settings: SftSettings, loaded: Loaded
) -> tuple[list[Encoded], list[Encoded], Json]:
    """Return training rows, evaluation rows (perhaps none) and what to say of them."""
    limit = min(settings.max_context_length or loaded.max_length, loaded.max_length)
    if settings.max_context_length and settings.max_context_length > loaded.max_length:
        raise ConfigError(
            f"max_context_length is {settings.max_context_length}, but the base model's positions "
            f"end at {loaded.max_length}; lower it"
        )
    train = encode_rows(
        read_rows(require(store, Dataset, job.dataset)), loaded.tokenizer, limit, name=job.dataset
    )
    logger.info("training on %s: %s", job.dataset, train.describe(limit))
    notes = {"dataset": train.describe(limit), "num_rows_too_long": len(train.too_long)}
    if job.evaluation_dataset:
        held = require(store, Dataset, job.evaluation_dataset)
        evaluation = encode_rows(read_rows(held), loaded.tokenizer, limit, name=held.id)
        logger.info("evaluating on %s: %s", held.id, evaluation.describe(limit))
        return train.rows, evaluation.rows, notes
    if settings.eval_auto_carveout:
        kept, held_rows = carve_out(train.rows, settings.seed)
        return kept, held_rows, notes | {"num_rows_carved_out": len(held_rows)}
    return train.rows, [], notes


def carve_out(rows: list[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Hold 10 % of the rows back, at most 200; the same rows for the same seed."""
    num_held = min(_MAX_CARVEOUT, round(len(rows) * _CARVEOUT_SHARE))
    if num_held == 0:
        raise DatasetError(
            f"eval_auto_carveout of {len(rows)} rows leaves none to evaluate on; "
            "use at least 5 rows or an evaluation_dataset"
        )
    held = set(random.Random(f"carveout/{seed}").sample(range(len(rows)), num_held))
    return [r for i, r in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


def _learning_rate(settings: SftSettings, loaded: Loaded) -> float:
    if settings.learning_rate is not None:
        return settings.learning_rate
    rate, reason = auto_learning_rate(sum(p.numel() for p in loaded.model.parameters()))
    logger.info("learning_rate %g: %s", rate, reason)
    return rate


def _adapter(store: Store, settings: SftSettings, loaded: Loaded, base: Model) -> Loaded:
    if not settings.warm_start_from:
        return add_lora(loaded, settings, base.path)
    adapter = require(store, Model, settings.warm_start_from)
    logger.info("going on from adapter %s", adapter.version_id)
    return attach_adapter(loaded, adapter.path, trainable=True)


def _run_key(store: Store, job: Job, base: Model) -> str:
    """Return a hash of all that a run's result depends on."""
    parts: list[Any] = [job.settings, base.id, base.path, base.version]
    for name in (job.dataset, job.evaluation_dataset):
        parts.append(require(store, Dataset, name).sha256 if name else "")
    if job.settings.get("warm_start_from"):
        parts.append(require(store, Model, job.settings["warm_start_from"]).version_id)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _metrics(state: Checkpoint, report: JobReport, num_threads: int) -> Json:
    seconds = max(state.train_s, 1e-9)
    return {
        "num_steps": state.step,
        "num_tokens": state.num_tokens,
        "train_s": round(state.train_s, 3),
        "tokens_per_s": round(state.num_tokens / seconds, 1),
        "num_threads": num_threads,
        "train_loss": report.progress.loss,
        "eval_loss_before": state.first_eval_loss,
        "eval_loss": state.last_eval_loss,
        "best_eval_loss": state.best_eval_loss,
        "stopped_early": state.stopped_early,
    }
