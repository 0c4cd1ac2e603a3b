"""The whole loop on the credit card application, in one run, every figure measured in it.

    python -m examples.credit_cards.demo [--quick] [--serve] [--teacher URL --teacher-model NAME]

Simulate and rate applicants → have a teacher explain the ratings, through our gateway → make a
dataset of the traces → fine-tune the small base model → put the adapter live while others keep
asking → evaluate base against tuned → measure speed, first call against cached → report.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import openai

from examples.credit_cards.calls import Client, told
from examples.credit_cards.evaluate import evaluate
from examples.credit_cards.findings import Findings
from examples.credit_cards.plan import ADAPTER, BASE, Plan, parse_arguments
from examples.credit_cards.product import Product, StageError
from examples.credit_cards.prompts import Message, messages_for
from examples.credit_cards.provenance import provenance
from examples.credit_cards.rating import RatedApplicant
from examples.credit_cards.report import show, write_report
from examples.credit_cards.screen import Screen
from examples.credit_cards.speculate import speculate
from examples.credit_cards.speed import measure_speed, read_memory
from examples.credit_cards.switch import Switch, follow_and_switch
from examples.credit_cards.teach import (
    Applicants,
    Lessons,
    ask_teacher,
    count_lessons,
    make_dataset,
    rate_applicants,
    start_job,
    teacher,
)
from quickmatch.cli.server_lock import running_server
from quickmatch.core.errors import QuickmatchError


def main(argv: list[str] | None = None) -> int:
    """Run the demo. Exit code 0, 1 if a stage failed (with one line), 130 on Ctrl-C."""
    plan, screen = parse_arguments(argv), Screen()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(Run(plan, screen).all())
    except (StageError, QuickmatchError, openai.OpenAIError) as error:
        reason = told(error) if isinstance(error, openai.OpenAIError) else str(error)
        screen.console.print(f"\nfailed: {reason}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        screen.console.print("\nstopped; nothing is left running")
        return 130
    return 0


class Run:
    """One run: the stages in order."""

    def __init__(self, plan: Plan, screen: Screen) -> None:
        self._plan, self._screen = plan, screen
        self._is_done = False

    async def all(self) -> None:
        """Run every stage and write the report."""
        plan, screen = self._plan, self._screen
        setup = provenance(plan)
        with screen.stage("rate", "simulate applicants, train the rating model, rate new ones"):
            applicants = rate_applicants(plan, screen)
        product = Product(plan.home, screen)
        try:
            # Off until the stage on speculation: those before it measure plain decoding.
            with product.serving(BASE, self._stays_up, "--speculation", "off") as url:
                found = await self._loop(product, url, applicants, setup)
                page = write_report(found, plan.out)
                show(found, screen)
                screen.say(f"report: {page.resolve()}")
                self._is_done = True
                if plan.serve:
                    self._say_how_to_call(product, url)
        finally:
            product.close()

    def _stays_up(self) -> bool:
        return self._plan.serve and self._is_done

    async def _loop(
        self, product: Product, url: str, applicants: Applicants, setup: dict[str, Any]
    ) -> Findings:
        plan, screen = self._plan, self._screen
        client = Client(url, plan.max_tokens)
        try:
            lessons = await self._teach(product, client, applicants)
            switch = await self._train(product, client, applicants)
            with screen.stage("evaluate", "held-out applicants: base against tuned"):
                quality = await evaluate(plan, product, client, screen)
            with screen.stage("speed", "one caller: first calls, then the same calls cached"):
                prompts = _prompts(applicants.for_latency)
                speed = await measure_speed(client, prompts, screen)
            memory = read_memory(product, switch.adapter)
            with screen.stage("speculate", "drafting ahead: index empty, index warm, with a head"):
                fresh = _prompts(applicants.for_speculation)
                speculation = await speculate(plan, product, client, url, fresh, screen)
        finally:
            await client.close()
        return Findings(
            plan=plan,
            rating_model=applicants.model,
            lessons=lessons,
            switch=switch,
            quality=quality,
            speed=speed,
            memory=memory,
            speculation=speculation,
            timeline=screen.timeline,
            wall_s=screen.elapsed_s,
            provenance=setup,
        )

    async def _teach(self, product: Product, client: Client, applicants: Applicants) -> Lessons:
        plan, screen = self._plan, self._screen
        with (
            screen.stage("teach", "a teacher explains every rating, through our gateway"),
            teacher(plan, product, screen) as name,
        ):
            began = time.monotonic()
            answers = await ask_teacher(client, name, applicants.asked, plan, screen)
            wall_s = time.monotonic() - began
            lessons = count_lessons(product, name, answers, wall_s, screen)
        with screen.stage("dataset", "from the traces, by filter; validated, split"):
            make_dataset(plan, product, screen)
        return lessons

    async def _train(self, product: Product, client: Client, applicants: Applicants) -> Switch:
        plan, screen = self._plan, self._screen
        with screen.stage("fine-tune", "LoRA on the base model, in the background; then live"):
            job = start_job(plan, product)
            prompts = _prompts(applicants.for_latency)
            try:
                return await follow_and_switch(product, job["id"], client, prompts, screen)
            except BaseException:  # above all Ctrl-C, which comes as a cancellation
                product.stop_job(job["id"])
                raise

    def _say_how_to_call(self, product: Product, url: str) -> None:
        say, server = self._screen.say, running_server(product.home)
        say(f"the server is up at {url}; model names: {BASE}, {ADAPTER}")
        say(f"try: curl {url}/models")
        say(f"or:  QUICKMATCH_HOME={product.home.root} quickmatch chat {ADAPTER}")
        say(f"stop it with: kill {server.pid if server else 0}")


def _prompts(applicants: Sequence[RatedApplicant]) -> Sequence[list[Message]]:
    return [messages_for(applicant) for applicant in applicants]


if __name__ == "__main__":
    sys.exit(main())
