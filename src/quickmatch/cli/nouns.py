"""The nouns of the command line: which documents each names and how one looks in a table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quickmatch.cli import output
from quickmatch.core.errors import ConfigError
from quickmatch.store import documents as d
from quickmatch.store.protocol import Filter

Cell = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Noun:
    """One noun: its spellings, its documents, and its table's columns."""

    name: str
    spellings: tuple[str, ...]
    kind: type[d.Document]
    columns: tuple[tuple[str, Cell], ...]
    newest_first: bool = False
    where: Filter = field(default_factory=dict)  # only these documents

    def row(self, document: d.Document) -> list[str]:
        """Return the table cells of one document."""
        return [cell(document) for _, cell in self.columns]


def _progress(job: d.Job) -> str:
    p = job.progress
    return f"{p.step}/{p.total_steps}" if p.total_steps else "–"


def _learns_from(job: d.Job) -> str:
    return job.dataset or job.file or ("traces" if job.trace_filter is not None else "–")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _adapters(deployment: d.Deployment) -> str:
    shown = [
        f"{name}@{status.version} {status.state}"
        for name, status in deployment.adapter_status.items()
    ]
    waiting = [
        f"{n}@{v}" for n, v in deployment.adapters.items() if n not in deployment.adapter_status
    ]
    return ", ".join(shown + waiting) or "–"


def _trace_ms(trace: d.Trace) -> str:
    return output.number(trace.timings.total_ms, 1)


NOUNS: tuple[Noun, ...] = (
    Noun(
        "model",
        ("model", "models"),
        d.Model,
        (
            ("NAME", lambda m: m.id),
            ("KIND", lambda m: str(m.model_kind)),
            ("VERSION", lambda m: str(m.version)),
            ("BASE", lambda m: m.base_model or "–"),
            ("SIZE", lambda m: output.size(m.size_bytes) if m.size_bytes else "–"),
            ("AGE", lambda m: output.age(m.created_at)),
        ),
    ),
    Noun(
        "draft",
        ("draft", "drafts"),
        d.Model,
        (
            ("NAME", lambda m: m.id),
            ("VERSION", lambda m: str(m.version)),
            ("BASE", lambda m: m.base_model),
            ("ADAPTER", lambda m: m.adapter or "–"),
            ("SIZE", lambda m: output.size(m.size_bytes)),
            ("JOB", lambda m: m.source_job or "–"),
            ("AGE", lambda m: output.age(m.created_at)),
        ),
        where={"model_kind": "draft"},
    ),
    Noun(
        "dataset",
        ("dataset", "datasets"),
        d.Dataset,
        (
            ("NAME", lambda s: s.id),
            ("ROWS", lambda s: f"{s.num_rows:,}"),
            ("FORMAT", lambda s: s.format),
            ("SOURCE", lambda s: s.source),
            ("AGE", lambda s: output.age(s.created_at)),
        ),
    ),
    Noun(
        "job",
        ("job", "jobs", "sftj", "sftjs", "draftj", "draftjs", "draft-job", "draft-jobs"),
        d.Job,
        (
            ("ID", lambda j: j.id),
            ("TYPE", lambda j: j.job_type),
            ("STATE", lambda j: str(j.state)),
            ("STEP", _progress),
            ("LOSS", lambda j: output.number(j.progress.loss, 3)),
            ("HITS", lambda j: _percent(j.progress.acceptance)),
            ("BASE", lambda j: j.base_model),
            ("FROM", _learns_from),
            ("OUTPUT", lambda j: j.output_model),
            ("AGE", lambda j: output.age(j.created_at)),
        ),
        newest_first=True,
    ),
    Noun(
        "deployment",
        ("deployment", "deployments"),
        d.Deployment,
        (
            ("NAME", lambda p: p.id),
            ("MODEL", lambda p: p.model),
            ("STATE", lambda p: str(p.state)),
            ("ADAPTERS", _adapters),
            ("TRACE", lambda p: "on" if p.trace else "off"),
            ("URL", lambda p: p.url or "–"),
            ("RESTARTS", lambda p: str(p.num_restarts)),
        ),
    ),
    Noun(
        "trace",
        ("trace", "traces"),
        d.Trace,
        (
            ("ID", lambda t: t.id),
            ("MODEL", lambda t: t.model_version),
            ("STATUS", lambda t: str(t.status)),
            ("CACHE", lambda t: t.cache),
            ("TOKENS", lambda t: str(t.usage.get("total_tokens", "–"))),
            ("MS", _trace_ms),
            ("TAGS", lambda t: " ".join(f"{k}={v}" for k, v in t.tags.items()) or "–"),
            ("AGE", lambda t: output.age(t.created_at)),
        ),
        newest_first=True,
    ),
    Noun(
        "audit",
        ("audit", "audits"),
        d.AuditRecord,
        (
            ("NUMBER", lambda a: a.id),
            ("ACTION", lambda a: a.action),
            ("SUBJECT", lambda a: a.subject),
            ("ACTOR", lambda a: a.actor),
            ("HASH", lambda a: a.hash[:12]),
            ("AGE", lambda a: output.age(a.created_at)),
        ),
        newest_first=True,
    ),
)


def find_noun(spelling: str) -> Noun:
    """Return the noun of a spelling. Raises ConfigError that lists them."""
    for noun in NOUNS:
        if spelling.lower() in noun.spellings:
            return noun
    names = ", ".join(n.name for n in NOUNS)
    raise ConfigError(f"there is no noun {spelling!r}; there are: {names}")
