"""The operation "complete": answer real calls to their natural end, so many of them in flight.

    {"op": "complete", "calls": [{"prompt": [...], "max_tokens": 96, "prediction": [...]}, ...],
     "concurrency": 8, "temperature": 0.0, "seed": 0, "ignore_eos": false}
        -> {"ok": true, "seconds": ..., "outputs": [{"token_ids": [...], "seconds": ...}, ...]}

A closed loop, as a load generator's: a call that ends is replaced by the next one at once. An
output's `seconds` run from when its call was taken up to its last token. Standard library only.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

Call = dict[str, Any]
Output = dict[str, Any]
Progress = tuple[int, list[int], bool]  # index of the call, its new tokens, whether it has ended


def closed_loop(
    calls: list[Call],
    concurrency: int,
    add: Callable[[int, Call], None],
    step: Callable[[], Iterable[Progress]],
) -> list[Output]:
    """Feed an engine that is driven step by step; return one output a call."""
    outputs: list[Output] = [{"token_ids": [], "seconds": 0.0} for _ in calls]
    started: dict[int, float] = {}
    upcoming = iter(enumerate(calls))
    num_left = len(calls)
    while num_left:
        while len(started) < concurrency and (entry := next(upcoming, None)) is not None:
            started[entry[0]] = time.perf_counter()
            add(*entry)
        for index, token_ids, is_end in step():
            outputs[index]["token_ids"] += token_ids
            if is_end:
                outputs[index]["seconds"] = time.perf_counter() - started.pop(index)
                num_left -= 1
    return outputs


def one_by_one(calls: list[Call], answer: Callable[[Call], list[int]]) -> list[Output]:
    """The same for a library that answers a call whole: one after the other."""
    outputs: list[Output] = []
    for call in calls:
        start = time.perf_counter()
        token_ids = answer(call)
        outputs.append({"token_ids": token_ids, "seconds": time.perf_counter() - start})
    return outputs
