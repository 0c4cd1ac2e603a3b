"""`quickmatch chat`: talk with a served model in the terminal, over the same API as any client."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from quickmatch.cli.output import Output, OutputFormat, note, print_json
from quickmatch.core.errors import UpstreamError
from quickmatch.core.settings import Home


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        epilog="Examples: quickmatch chat quickmatch-base · quickmatch chat support-bot 'Hello!'"
    )(chat)


def chat(
    model: Annotated[str, typer.Argument(help="A served model, adapter or deployment.")],
    prompt: Annotated[str, typer.Argument(help="One question; without it: a conversation.")] = "",
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    url: Annotated[str | None, typer.Option(help="Another server's URL, to /v1.")] = None,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Chat with a served model. Ctrl-D ends a conversation."""
    from quickmatch.cli.server_lock import require_server_url

    base = require_server_url(Home.from_environment(), url)
    history: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    body = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
    if prompt:
        history.append({"role": "user", "content": prompt})
        _one_turn(base, {**body, "messages": history}, output)
        return
    note(f"chatting with {model} at {base}; Ctrl-D ends")
    while (line := _read_line()) is not None:
        history.append({"role": "user", "content": line})
        answer = _one_turn(base, {**body, "messages": history}, output)
        history.append({"role": "assistant", "content": answer})


def _read_line() -> str | None:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        if line:
            return line


def _one_turn(base: str, body: dict[str, Any], output: OutputFormat) -> str:
    if output is OutputFormat.JSON:
        answer = _post(base, body)
        print_json(answer)
        return str(answer["choices"][0]["message"]["content"])
    parts = []
    for text in _stream(base, body):
        parts.append(text)
        typer.echo(text, nl=False)
    typer.echo()
    return "".join(parts)


def _post(base: str, body: dict[str, Any]) -> dict[str, Any]:
    import httpx

    try:
        response = httpx.post(f"{base}/chat/completions", json=body, timeout=600)
    except httpx.HTTPError as error:
        raise UpstreamError(f"{base} did not answer: {error}") from error
    _check(response.status_code, response.content)
    result: dict[str, Any] = response.json()
    return result


def _stream(base: str, body: dict[str, Any]) -> Iterator[str]:
    import httpx

    body = {**body, "stream": True}
    try:
        with httpx.stream("POST", f"{base}/chat/completions", json=body, timeout=600) as response:
            if response.status_code != 200:
                _check(response.status_code, response.read())
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield from _texts(json.loads(line.removeprefix("data: ")))
    except httpx.HTTPError as error:
        raise UpstreamError(f"{base} did not answer: {error}") from error


def _texts(event: dict[str, Any]) -> Iterator[str]:
    if "error" in event:
        raise UpstreamError(event["error"]["message"])
    for choice in event.get("choices", ()):
        yield choice["delta"].get("content") or ""


def _check(status: int, content: bytes) -> None:
    if status == 200:
        return
    try:
        message = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = content[:200].decode(errors="replace")
    raise UpstreamError(f"the server answered {status}: {message}")
