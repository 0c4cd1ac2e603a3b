"""`quickmatch bench`: load a served model with streaming requests and report what a client sees."""

import asyncio
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickmatch.cli.output import Output, OutputFormat, note, print_json, print_table
from quickmatch.core.errors import ConfigError
from quickmatch.core.settings import Home

if TYPE_CHECKING:
    import httpx

DEFAULT_PROMPT = "Write a short note about request number {i}."


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        epilog="Example: quickmatch bench quickmatch-base --concurrency 8 --num-requests 64"
    )(bench)


@dataclass(slots=True)
class Sample:
    """One request, as its client saw it. Times in seconds."""

    ttft_s: float = 0.0
    total_s: float = 0.0
    completion_tokens: int = 0
    cache: str = ""
    error: str = ""

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first."""
        return (self.total_s - self.ttft_s) / max(1, self.completion_tokens - 1)


@dataclass(slots=True)
class Load:
    """What to send."""

    url: str
    model: str
    prompts: list[list[dict[str, Any]]]  # chat messages
    concurrency: int
    max_tokens: int
    use_cache: bool
    samples: list[Sample] = field(default_factory=list)


def bench(
    model: Annotated[str, typer.Argument(help="A served model, adapter or deployment.")],
    num_requests: Annotated[int, typer.Option(min=1)] = 32,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    file: Annotated[Path | None, typer.Option(help="Chat JSONL to take prompts from.")] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Allow cached answers.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="Another server's URL, to /v1.")] = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Measure latency, time to first token and throughput under load."""
    from quickmatch.cli.server_lock import require_server_url

    base = require_server_url(Home.from_environment(), url)
    prompts = _prompts(file, num_requests)
    load = Load(base, model, prompts, concurrency, max_tokens, cache)
    start = time.perf_counter()
    asyncio.run(_run(load))
    summary = summarise(load.samples, time.perf_counter() - start)
    summary |= {"model": model, "url": base, "concurrency": concurrency}
    if output is OutputFormat.JSON:
        print_json({**summary, "requests": [asdict(sample) for sample in load.samples]})
    else:
        _print_summary(summary)
    if summary["num_errors"]:
        note(f"first error: {next(s.error for s in load.samples if s.error)}")
        raise typer.Exit(1)


def summarise(samples: list[Sample], wall_s: float) -> dict[str, Any]:
    """Return counts, tokens a second and percentiles (ms) of the requests that went well."""
    good = [s for s in samples if not s.error]
    tokens = sum(s.completion_tokens for s in good)
    return {
        "num_requests": len(samples),
        "num_errors": len(samples) - len(good),
        "num_cached": sum(s.cache == "hit" for s in good),
        "completion_tokens": tokens,
        "wall_s": wall_s,
        "tokens_per_s": tokens / wall_s,
        "requests_per_s": len(good) / wall_s,
        "ttft_ms": _percentiles([s.ttft_s for s in good]),
        "tpot_ms": _percentiles([s.tpot_s for s in good if s.completion_tokens > 1]),
        "latency_ms": _percentiles([s.total_s for s in good]),
    }


def _percentiles(values_s: list[float]) -> dict[str, float]:
    if not values_s:
        return {}
    ordered = sorted(values_s)
    at = {p: ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] for p in (50, 95, 99)}
    return {f"p{p}": 1000 * value for p, value in at.items()}


def _prompts(file: Path | None, count: int) -> list[list[dict[str, Any]]]:
    if file is None:
        texts = [DEFAULT_PROMPT.format(i=i) for i in range(count)]
        return [[{"role": "user", "content": text}] for text in texts]
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            rows.append(_prompt_of(line, f"{file} line {number}"))
    if not rows:
        raise ConfigError(f"{file} holds no rows")
    return [rows[i % len(rows)] for i in range(count)]


def _prompt_of(line: str, where: str) -> list[dict[str, Any]]:
    try:
        messages: list[dict[str, Any]] = json.loads(line)["messages"]
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is not a chat row with `messages`: {error!r}") from error
    if not messages:
        raise ConfigError(f"{where} has no message before the assistant's")
    return messages


async def _run(load: Load) -> None:
    import httpx
    from rich.console import Console
    from rich.progress import Progress

    queue = iter(load.prompts)
    limits = httpx.Limits(max_connections=load.concurrency)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{load.model} × {load.concurrency}", total=len(load.prompts))
        async with httpx.AsyncClient(timeout=600, limits=limits) as client:

            async def worker() -> None:
                for messages in queue:
                    load.samples.append(await _request(client, load, messages))
                    bar.advance(task)

            await asyncio.gather(*(worker() for _ in range(load.concurrency)))


async def _request(
    client: "httpx.AsyncClient", load: Load, messages: list[dict[str, Any]]
) -> Sample:
    import httpx

    body = {
        "model": load.model,
        "messages": messages,
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {} if load.use_cache else {"Cache-Control": "no-store"}
    sample, start = Sample(), time.perf_counter()
    try:
        url = f"{load.url}/chat/completions"
        async with client.stream("POST", url, json=body, headers=headers) as response:
            sample.cache = response.headers.get("x-quickmatch-cache", "")
            if response.status_code != 200:
                sample.error = (await response.aread()).decode(errors="replace")[:300]
            async for line in response.aiter_lines():
                _read_event(sample, line, start)
    except httpx.HTTPError as error:
        sample.error = repr(error)
    sample.total_s = time.perf_counter() - start
    return sample


def _read_event(sample: Sample, line: str, start: float) -> None:
    if not line.startswith("data: ") or line == "data: [DONE]":
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        sample.error = str(event["error"].get("message"))
    if not sample.ttft_s and any(c["delta"].get("content") for c in event.get("choices", ())):
        sample.ttft_s = time.perf_counter() - start
    if event.get("usage"):
        sample.completion_tokens = event["usage"]["completion_tokens"]


def _print_summary(summary: dict[str, Any]) -> None:
    rows = []
    for key, label in (("ttft_ms", "first token"), ("tpot_ms", "token"), ("latency_ms", "whole")):
        values = summary[key]
        rows.append(
            [label, *(f"{values[p]:,.1f}" for p in ("p50", "p95", "p99"))] if values else []
        )
    print_table(("LATENCY (ms)", "P50", "P95", "P99"), [r for r in rows if r], empty="no answers")
    typer.echo(
        f"{summary['num_requests']} requests, {summary['num_errors']} errors, "
        f"{summary['num_cached']} cached; {summary['tokens_per_s']:,.0f} tokens/s, "
        f"{summary['requests_per_s']:.1f} requests/s over {summary['wall_s']:.1f} s"
    )
