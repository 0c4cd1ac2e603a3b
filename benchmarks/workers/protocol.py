"""The worker's side of a benchmark: JSON lines in on stdin, one answer each on stdout.

A contender is an object with two methods; `serve` does the rest. It runs under the contender's
own Python, so this file and the package's `__init__` import nothing but the standard library.

    {"op": "load", "model": "/path", "options": {…}}   -> {"ok": true, "seconds": …, "info": {…}}
    {"op": "generate", "prompts": [[…], …], "max_tokens": 64}
                                          -> {"ok": true, "seconds": …, "token_ids": [[…], …]}
    {"op": "quit"}                                     -> the process ends

A contender may have more operations; it names them in `OPERATIONS`. Their fields are those of the
request, and what they return joins the answer. `closed_loop.py` says what "complete" is.

What fails is answered with {"ok": false, "error": "…"}, and the worker lives on. Between two
requests it sleeps in `read`, so that an idle contender costs the others nothing. The clock runs
here, around the contender's call alone: the pipe is not measured.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol, TextIO

Reply = dict[str, Any]


class Contender(Protocol):
    """What a worker wraps."""

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Load the model folder, ready to generate; return what is worth recording."""

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedily extend all prompts at once by exactly `max_tokens` tokens, end token or not."""


def serve(make: Callable[[], Contender]) -> None:
    """Answer requests until "quit" or the end of stdin."""
    replies = _claim_stdout()
    contender = make()
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            return
        json.dump(answer(contender, request), replies)
        replies.write("\n")
        replies.flush()


def answer(contender: Contender, request: dict[str, Any]) -> Reply:
    """Carry out one request; whatever it raises becomes an error reply."""
    try:
        start = time.perf_counter()
        if request["op"] == "load":
            info = contender.load(request["model"], request["options"])
            return {"ok": True, "seconds": time.perf_counter() - start, "info": info}
        if request["op"] in getattr(contender, "OPERATIONS", ()):
            fields = {name: value for name, value in request.items() if name != "op"}
            found = getattr(contender, request["op"])(**fields)
            return {"ok": True, "seconds": time.perf_counter() - start, **found}
        max_tokens = request["max_tokens"]
        token_ids = contender.generate(request["prompts"], max_tokens)
        seconds = time.perf_counter() - start
        if any(len(ids) != max_tokens for ids in token_ids):
            lengths = [len(ids) for ids in token_ids]
            raise RuntimeError(f"asked for {max_tokens} tokens of each prompt, got {lengths}")
        return {"ok": True, "seconds": seconds, "token_ids": token_ids}
    except Exception as error:  # a process boundary: the harness decides what it means
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def _claim_stdout() -> TextIO:
    """Keep the real stdout for replies; what libraries print goes to stderr from here on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies
