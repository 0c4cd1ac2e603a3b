"""Evaluation: the held-out applicants, explained by the base model and by the tuned one.

Answers come through the gateway, as the application gets them. The references are the teacher's
answers to the same applicants, which no training saw.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence

from examples.credit_cards.calls import Answer, Client, told
from examples.credit_cards.checks import fact_accuracy, fact_errors, number_accuracy, number_errors
from examples.credit_cards.direction import direction_accuracy, direction_errors
from examples.credit_cards.findings import Measure, Quality, Sample
from examples.credit_cards.plan import ADAPTER, BASE, DATASET, Plan
from examples.credit_cards.product import Product, StageError
from examples.credit_cards.prompts import Message, read_case
from examples.credit_cards.screen import Screen
from quickmatch.store.documents import Dataset, Model
from quickmatch.store.protocol import require
from quickmatch.tuning.chat_rows import ChatRow
from quickmatch.tuning.datasets import HOLDOUT_SUFFIX, read_rows
from quickmatch.tuning.evaluation import answer_rows, score_answers
from quickmatch.tuning.metrics import Score, mean_score

NUM_SAMPLES = 6
CHECKS: dict[str, Callable[[ChatRow, str], float]] = {
    "fact_accuracy": lambda row, text: fact_accuracy(row.prompt, text),
    "number_accuracy": lambda row, text: number_accuracy(row.prompt, text),
    "direction_accuracy": lambda row, text: direction_accuracy(row.prompt, text),
    "all_right": lambda row, text: min(
        check(row.prompt, text) for check in (fact_accuracy, number_accuracy, direction_accuracy)
    ),
}
LABELS = (  # key, label, unit; in the report's order
    ("fact_accuracy", "fact accuracy", "%"),
    ("number_accuracy", "number accuracy", "%"),
    ("direction_accuracy", "directions", "%"),
    ("all_right", "all three right", "%"),
    ("rouge_l", "ROUGE-L", "%"),
    ("bleu", "BLEU", ""),
    ("perplexity", "perplexity", ""),
)


async def evaluate(plan: Plan, product: Product, client: Client, screen: Screen) -> Quality:
    """Ask both models about every held-out applicant and score what they say."""
    rows = read_rows(require(product.store, Dataset, DATASET + HOLDOUT_SUFFIX))
    base, _ = await _ask(BASE, rows, plan, client, screen)
    began = time.perf_counter()
    tuned, answers = await _ask(ADAPTER, rows, plan, client, screen)
    wall_s = time.perf_counter() - began
    teacher = [row.answer for row in rows]
    scores = {
        "base": score_answers(rows, base, CHECKS),
        "tuned": score_answers(rows, tuned, CHECKS),
        "teacher": {name: mean_score([f(r, r.answer) for r in rows]) for name, f in CHECKS.items()},
    }
    screen.say("perplexity of the teacher's answers, base and tuned")
    for who, path in (("base", ""), ("tuned", require(product.store, Model, ADAPTER).path)):
        base_path = require(product.store, Model, BASE).path
        scores[who]["perplexity"] = await asyncio.to_thread(_perplexity, base_path, path, rows)
    texts = {"base": base, "tuned": tuned, "teacher": teacher}
    return Quality(
        num_rows=len(rows),
        measures=[
            Measure(key, label, unit, {w: s[key] for w, s in scores.items() if key in s})
            for key, label, unit in LABELS
        ],
        samples=_samples(rows, texts),
        num_openings={who: count_openings(said) for who, said in texts.items()},
        tokens_per_s=sum(answer.num_tokens for answer in answers) / wall_s,
        concurrency=plan.concurrency,
    )


def _perplexity(base_path: str, adapter_path: str, rows: Sequence[ChatRow]) -> Score:
    """Measure; what loads torch is imported here, so that the demo starts at once."""
    from transformers.utils.logging import disable_progress_bar

    from quickmatch.tuning.perplexity import perplexity

    disable_progress_bar()
    return perplexity(base_path, rows, adapter_path=adapter_path)


def count_openings(texts: Sequence[str]) -> int:
    """Return how many different first two sentences there are, figures aside."""
    firsts = (" ".join(re.split(r"(?<=[.!?])\s+", text)[:2]) for text in texts)
    return len({re.sub(r"[$%\d,]+", "#", first) for first in firsts})


async def _ask(
    model: str, rows: Sequence[ChatRow], plan: Plan, client: Client, screen: Screen
) -> tuple[list[str], list[Answer]]:
    answers: list[Answer] = []

    async def ask(messages: list[Message]) -> str:
        answers.append(await client.stream(model, messages, fresh=True))
        return answers[-1].text

    with screen.bar(f"explained by {model}", len(rows)) as bar:
        try:
            texts = await answer_rows(rows, ask, concurrency=plan.concurrency, on_answer=bar.show)
        except Exception as error:
            raise StageError(f"a call to {model} failed: {told(error)}") from error
    return texts, answers


def _samples(rows: Sequence[ChatRow], texts: dict[str, list[str]]) -> list[Sample]:
    """Show some right answers of the tuned model, and wrong ones if there are any."""
    found = []
    for number, row in enumerate(rows):
        case, tuned = read_case(row.prompt), texts["tuned"][number]
        found.append(
            Sample(
                prompt=str(row.prompt[-1]["content"]),
                answers={who: said[number] for who, said in texts.items()},
                errors=[
                    *fact_errors(case, tuned),
                    *number_errors(case, tuned),
                    *direction_errors(case, tuned),
                ],
            )
        )
    wrong = [sample for sample in found if sample.errors]
    right = [sample for sample in found if not sample.errors]
    shown = right[: NUM_SAMPLES - min(len(wrong), NUM_SAMPLES // 2)]
    return [*shown, *wrong[: NUM_SAMPLES - len(shown)]]
