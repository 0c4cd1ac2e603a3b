"""Evaluation of answers: ask a model for every row, score what it said.

Owns which metrics an evaluation has. Knows no HTTP and no torch: answers come through a caller's
function (the demo asks the gateway with OpenAI's client); perplexity, which needs the weights,
is `perplexity`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from quickmatch.tuning.chat_rows import ChatRow
from quickmatch.tuning.metrics import Score, bleu, exact_match, mean_score, rouge_l

Answer = Callable[[list[dict[str, Any]]], Awaitable[str]]  # messages -> the model's text
Evaluator = Callable[[ChatRow, str], float]  # row, answer -> score; 0 or 1 for a proportion


async def answer_rows(
    rows: Sequence[ChatRow],
    answer: Answer,
    *,
    concurrency: int = 8,
    on_answer: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the model's answer to each row's prompt, in the rows' order.

    on_answer: called with the number of answers so far, to show progress. The first failure
    cancels the rest and is raised.
    """
    gate, done = asyncio.Semaphore(concurrency), 0

    async def one(row: ChatRow) -> str:
        nonlocal done
        async with gate:
            text = await answer(row.prompt)
        done += 1
        if on_answer:
            on_answer(done)
        return text

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(row)) for row in rows]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def score_answers(
    rows: Sequence[ChatRow],
    answers: Sequence[str],
    evaluators: Mapping[str, Evaluator] | None = None,
) -> dict[str, Score]:
    """Return rouge_l, bleu, exact_match and the caller's own metrics, against the rows' answers."""
    references = [row.answer for row in rows]
    scores = {
        "rouge_l": rouge_l(references, answers),
        "bleu": bleu(references, answers),
        "exact_match": exact_match(references, answers),
    }
    for name, evaluator in (evaluators or {}).items():
        pairs = zip(rows, answers, strict=True)
        scores[name] = mean_score([float(evaluator(row, text)) for row, text in pairs])
    return scores


async def evaluate(
    rows: Sequence[ChatRow],
    answer: Answer,
    *,
    evaluators: Mapping[str, Evaluator] | None = None,
    concurrency: int = 8,
    on_answer: Callable[[int], None] | None = None,
) -> dict[str, Score]:
    """Ask and score in one call."""
    answers = await answer_rows(rows, answer, concurrency=concurrency, on_answer=on_answer)
    return score_answers(rows, answers, evaluators)
