"""The first half of the loop: applicants are rated, a teacher explains, the traces become data."""

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from examples.credit_cards.applicants import simulate
from examples.credit_cards.calls import Answer, Client, gather, told
from examples.credit_cards.fields import RATINGS
from examples.credit_cards.plan import (
    ADAPTER,
    APP_TAG,
    BASE,
    DATASET,
    KEY_VARIABLE,
    TEACHER,
    Plan,
)
from examples.credit_cards.product import Product, StageError, background, wait_until
from examples.credit_cards.prompts import messages_for
from examples.credit_cards.rating import RatedApplicant, RatingModel, stratified
from examples.credit_cards.screen import Screen
from examples.credit_cards.writer import DESCRIPTION, NAME
from quickmatch.store.documents import CacheEntry, Trace

TRACES_WITHIN_S = 20.0  # traces are written behind the calls' backs


@dataclass(frozen=True, slots=True)
class Applicants:
    """Who takes part: those that the teacher explains, and others for the figures of speed.

    No applicant is in two of the lists.
    """

    model: RatingModel
    asked: list[RatedApplicant]
    for_latency: list[RatedApplicant]
    for_speculation: list[RatedApplicant]


@dataclass(frozen=True, slots=True)
class Lessons:
    """What the teacher gave."""

    teacher: str  # called what it is
    answers: list[Answer]
    wall_s: float
    num_cached: int  # entries in the exact cache
    num_traces: int


def rate_applicants(plan: Plan, screen: Screen) -> Applicants:
    """Simulate, train the rating model, and rate as many new applicants of each rating."""
    model = RatingModel(simulate(plan.num_simulated, plan.seed), plan.seed)
    screen.say(
        f"rating model: {model.accuracy:.1%} of {model.num_held_out} held-out applicants right "
        f"(one in three by chance); weighs {', '.join(_top_fields(model))} most"
    )
    extra = plan.num_latency // len(RATINGS)
    everyone = stratified(model, plan.num_a_rating + extra, plan.seed + 1)
    asked, for_latency = [], []
    left = dict.fromkeys(RATINGS, extra)
    for applicant in everyone:
        if left[applicant.rating] > 0:
            left[applicant.rating] -= 1
            for_latency.append(applicant)
        else:
            asked.append(applicant)
    screen.say(f"{len(asked)} applicants for the teacher, {plan.num_a_rating} of each rating")
    known = {applicant.values for applicant in everyone}
    fresh = _others(model, known, plan.num_fresh, plan.seed + 2)
    return Applicants(model, asked, for_latency, fresh)


def _others(
    model: RatingModel, known: set[tuple[int, ...]], count: int, seed: int
) -> list[RatedApplicant]:
    """Rate so many new applicants, about as many of each rating, none of them among the known."""
    spare = 2  # of each rating; a draw that is among the known is very rare
    drawn = stratified(model, -(-count // len(RATINGS)) + spare, seed)
    return [applicant for applicant in drawn if applicant.values not in known][:count]


@contextmanager
def teacher(plan: Plan, product: Product, screen: Screen) -> Iterator[str]:
    """Register and deploy the teacher for the length of the block; yield what it is called."""
    if plan.teacher_url:
        remote = ["--remote-url", plan.teacher_url, "--remote-model", plan.teacher_model]
        product.run("create", "model", TEACHER, *remote, "--api-key-env", KEY_VARIABLE)
        product.run("deploy", TEACHER)
        yield f"{plan.teacher_model} at {plan.teacher_url}"
        return
    screen.say(f"teacher: {DESCRIPTION}, behind an OpenAI-compatible URL of its own")
    with _writer_server(product.home.root / "writer.log") as url:
        remote = ["--remote-url", url, "--remote-model", NAME, "--description", DESCRIPTION]
        product.run("create", "model", TEACHER, *remote)
        product.run("deploy", TEACHER)
        yield DESCRIPTION
        product.run("delete", "deployment", TEACHER)


@contextmanager
def _writer_server(log: Path) -> Iterator[str]:
    """Run the scripted writer's server on a free port; yield its URL."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/v1"
    command = [sys.executable, "-m", "examples.credit_cards.writer_server", "--port", str(port)]

    def is_up() -> bool | None:
        try:
            return httpx.get(f"{url}/models", trust_env=False).is_success or None
        except httpx.TransportError:
            return None

    with background(command, log, dict(os.environ), keep=lambda: False) as process:
        wait_until(is_up, process, log, "the scripted writer", 30.0)
        yield url


async def ask_teacher(
    client: Client, name: str, asked: Sequence[RatedApplicant], plan: Plan, screen: Screen
) -> list[Answer]:
    """Have every applicant's rating explained, as an application would: opting in to traces."""
    with screen.bar("explained by the teacher", len(asked)) as bar:

        async def ask(applicant: RatedApplicant) -> Answer:
            tags = {"app": APP_TAG, "rating": applicant.rating}
            answer = await client.whole(TEACHER, messages_for(applicant), tags)
            bar.advance()
            return answer

        try:
            return await gather(asked, ask, plan.concurrency)
        except Exception as error:
            raise StageError(f"the teacher ({name}) failed: {told(error)}") from error


def count_lessons(
    product: Product, name: str, answers: list[Answer], wall_s: float, screen: Screen
) -> Lessons:
    """Count what lies in the store now. Raises StageError if traces are missing."""
    where = {"tags.app": APP_TAG}
    end = time.monotonic() + TRACES_WITHIN_S
    while (found := product.store.count(Trace, where)) < len(answers):
        if time.monotonic() > end:
            raise StageError(f"{len(answers)} calls opted in to traces, {found} are in the store")
        time.sleep(0.1)
    cached = product.store.count(CacheEntry)
    screen.say(f"{found} traces and {cached} exact-cache entries in the store")
    return Lessons(name, answers, wall_s, cached, found)


def make_dataset(plan: Plan, product: Product, screen: Screen) -> None:
    """Make the dataset of the traces, validated, and hold a share out by rating."""
    made = product.run(
        *("create", "dataset", DATASET, "--from-traces"),
        *("--filter", f"tags.app={APP_TAG} AND status=200"),
        *("--holdout", f"{plan.holdout_share:.6f}", "--stratify-by", "rating"),
        *("--seed", str(plan.seed)),
    )
    for dataset in made:
        screen.say(f"{dataset['id']}: {dataset['num_rows']} rows, validated")


def start_job(plan: Plan, product: Product) -> dict[str, Any]:
    """Start the fine-tuning job in the background; return its document."""
    job: dict[str, Any] = product.run(
        *("create", "sftj", "--base-model", BASE, "--dataset", DATASET),
        *("--output-model", ADAPTER, "--lora-rank", str(plan.lora_rank)),
        *("--epochs", str(plan.epochs), "--learning-rate", str(plan.learning_rate)),
        *("--batch-size", str(plan.batch_size), "--seed", str(plan.seed)),
    )
    return job


def _top_fields(model: RatingModel) -> list[str]:
    return [importance.field.label for importance in model.importances[:3]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
