"""The switch: the job ends, its adapter goes live on the running server, traffic goes over to it.

Other users of the application keep asking meanwhile. None of their requests may fail, neither
those in flight at the switch nor those after it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

from examples.credit_cards.calls import Answer, Client, told
from examples.credit_cards.following import POLL_S, follow_job
from examples.credit_cards.plan import ADAPTER, BASE
from examples.credit_cards.product import Product, StageError
from examples.credit_cards.prompts import Message
from examples.credit_cards.screen import Screen
from quickmatch.store.documents import Deployment, Job, JobState, JobStep, Model
from quickmatch.store.protocol import Store, require

NUM_USERS = 2  # of the application, during the switch
BEFORE_END_S = 6.0  # when they begin to ask, by the job's own estimate
AFTER_SWITCH_S = 3.0
LIVE_WITHIN_S = 30.0


@dataclass(slots=True)
class Traffic:
    """Users who ask one question after the other; set `model` to send them elsewhere."""

    client: Client
    prompts: Sequence[list[Message]]
    model: str = BASE
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_in_flight: int = 0
    _is_over: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self) -> None:
        """Let the users ask, until `end`. Idempotent."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._user(i)) for i in range(NUM_USERS)]

    async def go_over_to(self, model: str) -> None:
        """Send the users elsewhere; return after a while in which at least one was answered."""
        self.model, began = model, time.monotonic()
        while time.monotonic() - began < LIVE_WITHIN_S:
            await asyncio.sleep(POLL_S)
            is_answered = any(a.model == model for a in self.answers) or self.failures
            if is_answered and time.monotonic() - began >= AFTER_SWITCH_S:
                return

    async def end(self) -> None:
        """Let the users finish what they are reading."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _user(self, number: int) -> None:
        for prompt in cycle(self.prompts[number::NUM_USERS]):
            if self._is_over:
                return
            self.num_in_flight += 1
            try:
                self.answers.append(await self.client.stream(self.model, prompt, fresh=True))
            except Exception as error:  # any failure counts, whatever it is
                self.failures.append(told(error))
                await asyncio.sleep(0.1)
            finally:
                self.num_in_flight -= 1


@dataclass(frozen=True, slots=True)
class Switch:
    """What was seen. Times in seconds."""

    job: Job
    steps: list[JobStep]
    adapter: Model
    live_s: float  # from the job's end to the first token from the adapter, at the client
    load_s: float  # of it, loading in the engine
    num_in_flight: int  # when the adapter was asked for
    answers: list[Answer]  # of the other users, before and after
    failures: list[str]


async def follow_and_switch(
    product: Product,
    job_id: str,
    client: Client,
    prompts: Sequence[list[Message]],
    screen: Screen,
) -> Switch:
    """Follow the job; when it is done put its adapter live. Raises StageError if either fails."""
    traffic = Traffic(client, prompts[1:])

    def begin_near_end(job: Job) -> None:
        if _is_near_end(job):
            traffic.begin()

    try:
        job = await follow_job(product.store, job_id, screen, begin_near_end)
        adapter = require(product.store, Model, ADAPTER)
        screen.say(
            f"asking for {ADAPTER} on {BASE}: the write to the store that `quickmatch load-lora` "
            "makes, without the start of a command"
        )
        num_in_flight = traffic.num_in_flight
        load_s = await _put_live(product.store, adapter.version)
        first = await client.stream(ADAPTER, prompts[0], fresh=True)
        await traffic.go_over_to(ADAPTER)
    finally:
        await traffic.end()
    steps = list(product.store.find(JobStep, {"job": job_id}, order_by="step"))
    live_s = first.first_token_at - (job.finished_at or first.first_token_at)
    found = Switch(
        job, steps, adapter, live_s, load_s, num_in_flight, traffic.answers, traffic.failures
    )
    _tell(found, screen)
    return found


def _is_near_end(job: Job) -> bool:
    progress = job.progress
    if not progress.step or progress.eta_s is None:
        return False
    return progress.eta_s < BEFORE_END_S or job.state is JobState.COMPLETED


async def _put_live(store: Store, version: int) -> float:
    """Write what is wanted, as `load-lora` does; wait until the fleet has done it."""

    def want(deployment: Deployment) -> None:
        deployment.adapters = {**deployment.adapters, ADAPTER: version}

    store.update(Deployment, BASE, want)
    end = time.monotonic() + LIVE_WITHIN_S
    while time.monotonic() < end:
        status = require(store, Deployment, BASE).adapter_status.get(ADAPTER)
        if status is not None and status.version == version:
            if status.state == "READY":
                return status.load_s or 0.0
            if status.state == "FAILED":
                raise StageError(f"the adapter does not load: {status.error}")
        await asyncio.sleep(POLL_S / 4)
    raise StageError(f"the adapter was not live after {LIVE_WITHIN_S:.0f} s")


def _tell(found: Switch, screen: Screen) -> None:
    screen.say(
        f"{found.adapter.version_id} live {found.live_s:.2f} s after the job was done, to the "
        f"first token ({found.load_s * 1000:.0f} ms of it loading)"
    )
    after = sum(answer.model == ADAPTER for answer in found.answers)
    screen.say(
        f"meanwhile {len(found.answers)} requests of other users, {found.num_in_flight} in flight "
        f"at the switch, {after} on the adapter after it: {len(found.failures)} failed"
    )
    if found.failures:
        raise StageError(f"a request failed during the switch: {found.failures[0]}")
