"""Speculation, in four phases on applicants never asked before: plain decoding; drafting with the
suffix index empty; the index warm; and beside it a head that was trained for the tuned model.

One caller asks in each phase. The head learns from prompts alone, the model writes the answers
itself; it is loaded while other users ask. At the end the plain phase's prompts are asked again,
because what speculation may change is the speed alone.
"""

import asyncio
import time
from collections.abc import Sequence

from examples.credit_cards.calls import Client
from examples.credit_cards.findings import Speculation
from examples.credit_cards.following import POLL_S, follow_job
from examples.credit_cards.meter import Meter
from examples.credit_cards.phases import Course, Phase
from examples.credit_cards.plan import ADAPTER, BASE, DATASET, DRAFT, Plan
from examples.credit_cards.product import Product, StageError
from examples.credit_cards.prompts import Message
from examples.credit_cards.screen import Screen
from examples.credit_cards.switch import Traffic
from quickmatch.store.documents import Deployment, DeploymentState, Job
from quickmatch.store.protocol import require

Prompts = Sequence[list[Message]]
AROUND_LOADING_S = 1.0  # others ask so long before the head is asked for, and after it is there
ENGINE_WITHIN_S = 60.0


async def speculate(
    plan: Plan, product: Product, client: Client, url: str, fresh: Prompts, screen: Screen
) -> Speculation:
    """Measure the phases and say what was found. The server decodes plainly before.

    fresh: plan.num_fresh prompts never asked before. Raises StageError if a call, the job or the
    loading of the head fails.
    """
    meter = Meter(url, BASE)
    try:
        found = await _Stage(plan, product, client, meter, fresh, screen).run()
    finally:
        await meter.close()
    _tell(found, screen)
    return found


class _Stage:
    """The phases in order; each takes its applicants from those that are left."""

    def __init__(
        self,
        plan: Plan,
        product: Product,
        client: Client,
        meter: Meter,
        fresh: Prompts,
        screen: Screen,
    ) -> None:
        self._plan, self._product, self._client = plan, product, client
        self._meter, self._screen, self._left = meter, screen, list(fresh)
        self._course = Course(client, meter, screen)

    async def run(self) -> Speculation:
        prompts = self._take(self._plan.num_a_phase)
        plain = await self._course.ask("plain", prompts)
        await self._turn_on()
        cold = await self._phase("cold")
        if cold.index_tokens:
            raise StageError(f"the suffix index held {cold.index_tokens} tokens at its start")
        others = self._take(self._plan.num_warm)
        await self._course.ask("others", others, concurrency=self._plan.concurrency)
        warm = await self._phase("warm")
        job = await self._train()
        traffic = Traffic(self._client, self._take(self._plan.num_during_swap), ADAPTER)
        swap_s = await self._load_head(traffic)
        head = await self._phase("head")
        points = list(self._course.points)
        again = await self._course.ask("again", prompts)
        pairs = zip(plain.answers, again.answers, strict=True)
        return Speculation(
            phases=[plain, cold, warm, head],
            course=points,
            job=job,
            swap_s=swap_s,
            num_during_swap=len(traffic.answers),
            num_failed=len(traffic.failures),
            num_compared=len(prompts),
            num_same=sum(before.text == after.text for before, after in pairs),
        )

    def _take(self, count: int) -> Prompts:
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    async def _phase(self, name: str) -> Phase:
        return await self._course.ask(name, self._take(self._plan.num_a_phase))

    async def _turn_on(self) -> None:
        """Let the engine draft; it is started again for it. Return when the adapter is back."""
        before = self._deployment().engine_info.get("pid")
        self._product.run("update", "deployment", BASE, "--set", "speculation.drafters=auto")
        end = time.monotonic() + ENGINE_WITHIN_S
        while time.monotonic() < end:
            found = self._deployment()
            status = found.adapter_status.get(ADAPTER)
            is_new = found.engine_info.get("pid") not in (None, before)
            is_up = found.state is DeploymentState.READY and status and status.state == "READY"
            if is_new and is_up:
                return
            if found.state is DeploymentState.FAILED:
                raise StageError(f"{BASE} cannot be served with speculation: {found.error}")
            await asyncio.sleep(POLL_S)
        raise StageError(f"{BASE} was not up again after {ENGINE_WITHIN_S:.0f} s")

    async def _train(self) -> Job:
        """Train a head. Forced, so that there is one to measure whatever the gate says of it."""
        plan = self._plan
        job = self._product.run(
            *("create", "draft-job", "--model", BASE, "--adapter", ADAPTER),
            *("--dataset", DATASET, "--max-sequences", str(plan.num_draft_rows)),
            *("--max-steps", str(plan.draft_steps), "--seed", str(plan.seed)),
            *("--output-draft", DRAFT, "--force"),
        )
        try:
            return await follow_job(self._product.store, job["id"], self._screen)
        except BaseException:  # above all Ctrl-C, which comes as a cancellation
            self._product.stop_job(job["id"])
            raise

    async def _load_head(self, traffic: Traffic) -> float:
        """Load the head while others ask; return the engine's pause for it."""
        begin = await self._meter.settled()
        command = ("load-draft", DRAFT, "--deployment", BASE, "--wait")
        traffic.begin()
        try:
            await asyncio.sleep(AROUND_LOADING_S)
            document = await asyncio.to_thread(self._product.run, *command)
            await asyncio.sleep(AROUND_LOADING_S)
        finally:
            await traffic.end()
        if traffic.failures:
            raise StageError(f"a request failed during the swap: {traffic.failures[0]}")
        await self._course.others("others", len(traffic.answers), begin)
        return float(document["draft_status"][ADAPTER]["swap_s"])

    def _deployment(self) -> Deployment:
        return require(self._product.store, Deployment, BASE)


def _tell(found: Speculation, screen: Screen) -> None:
    first, *_, last = found.phases
    screen.say(
        f"one caller: {first.tokens_per_s:,.0f} tokens/s plain, {last.tokens_per_s:,.0f} at the "
        f"end; {found.num_same} of {found.num_compared} texts are the same"
    )
    screen.say(
        f"the head came with a pause of {1000 * found.swap_s:.1f} ms; meanwhile "
        f"{found.num_during_swap} requests of other users, {found.num_failed} failed"
    )
