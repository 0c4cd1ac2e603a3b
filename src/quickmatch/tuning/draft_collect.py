"""Collects what a draft job learns from: sequences that the target itself has said.

Owns the answers that the target writes, and the split into sequences to learn from and sequences to
measure on. An interrupted job finds what it had collected.
"""

import logging
import random
import time

from quickmatch.core.errors import ConfigError, DatasetError
from quickmatch.core.settings import Home
from quickmatch.store.documents import Job
from quickmatch.store.protocol import Store
from quickmatch.tuning.draft_answers import write_answers
from quickmatch.tuning.draft_data import (
    MIN_OUTPUT_TOKENS,
    Collected,
    TokenSequence,
    open_folder,
    read_sequences,
    source_of,
    write_sequences,
)
from quickmatch.tuning.draft_rows import Asked, RowEncoder
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.draft_source import choose, newest_first
from quickmatch.tuning.draft_target import Target
from quickmatch.tuning.job_report import JobReport
from quickmatch.tuning.sft import Stopped

logger = logging.getLogger(__name__)
MIN_SEQUENCES = 8
_MAX_HELD = 64
_TELL_EVERY_S = 1.0


def collect(
    store: Store, home: Home, job: Job, settings: DraftSettings, target: Target, report: JobReport
) -> Collected:
    """Return what the job learns from and what it is measured on.

    Raises Stopped when asked to stop, DatasetError if too little is usable.
    """
    folder = open_folder(store, home, job)
    found = read_sequences(folder)
    if found is not None:
        return found
    encoder = RowEncoder(
        target.runner.folder, version_id=target.version_id, regenerate=settings.regenerate
    )
    chosen = choose(
        newest_first(store, job, encoder),
        max_length=_limit(settings, target),
        max_sequences=settings.max_sequences,
    )
    logger.info("%s: %s", source_of(job), chosen.summary())
    sequences = _answered(chosen.asked, settings, target, report)
    usable = [s for s in sequences if len(s.output) >= MIN_OUTPUT_TOKENS]
    if len(usable) < MIN_SEQUENCES:
        raise DatasetError(
            f"{source_of(job)}: {len(usable)} sequences to learn from, at least {MIN_SEQUENCES} "
            f"are needed; {chosen.summary()}. Give more rows, or raise max_context_length or "
            "max_sequences"
        )
    collected = split(usable, settings, newest=job.trace_filter is not None)
    logger.info(
        "%d sequences, %d held back; %d tokens, %d of them answers",
        *(len(usable), len(collected.held)),
        *(sum(map(len, usable)), sum(len(s.output) for s in usable)),
    )
    write_sequences(folder, collected)
    return collected


def split(sequences: list[TokenSequence], settings: DraftSettings, *, newest: bool) -> Collected:
    """Hold some back: the newest of traffic, of a dataset some at random (the same for a seed)."""
    num_held = min(_MAX_HELD, max(2, round(len(sequences) * settings.holdout)))
    held = set(range(len(sequences) - num_held, len(sequences)))
    if not newest:
        dice = random.Random(f"holdout/{settings.seed}")
        held = set(dice.sample(range(len(sequences)), num_held))
    return Collected(
        train=[s for i, s in enumerate(sequences) if i not in held],
        held=[s for i, s in enumerate(sequences) if i in held],
    )


def _limit(settings: DraftSettings, target: Target) -> int:
    longest = target.max_length
    asked = settings.max_context_length
    if asked is not None and asked > longest:
        raise ConfigError(
            f"max_context_length is {asked}, but the target takes {longest} tokens; lower it"
        )
    return asked or longest


def _answered(
    asked: list[Asked], settings: DraftSettings, target: Target, report: JobReport
) -> list[TokenSequence]:
    """Let the target answer where there is no answer of its own."""
    open_ones = [i for i, a in enumerate(asked) if a.output is None]
    outputs = [a.output or [] for a in asked]
    told_at = 0.0

    def tell(num_done: int) -> bool:
        nonlocal told_at
        if time.monotonic() - told_at >= _TELL_EVERY_S:
            report.on_phase(f"answering {num_done}/{len(open_ones)}")
            told_at = time.monotonic()
        return report.should_stop()

    limit = _limit(settings, target)
    written = write_answers(
        target.engine,
        [asked[i].prompt for i in open_ones],
        adapter=target.adapter_id or None,
        temperature=settings.temperature,
        max_tokens=settings.max_output_tokens,
        max_length=limit,
        seed=settings.seed,
        on_step=tell,
    )
    if report.should_stop():
        raise Stopped
    for index, output in zip(open_ones, written, strict=True):
        outputs[index] = output
    return [TokenSequence(a.prompt, output) for a, output in zip(asked, outputs, strict=True)]
