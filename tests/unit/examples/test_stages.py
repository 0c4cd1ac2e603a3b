"""Parts of the demo's stages that need no server: users at the switch, commands, openings."""

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from examples.credit_cards.calls import Answer, gather
from examples.credit_cards.evaluate import count_openings
from examples.credit_cards.plan import ADAPTER, BASE, Plan, quick
from examples.credit_cards.product import Product, StageError, background, wait_until
from examples.credit_cards.screen import Screen
from examples.credit_cards.speed import measure_speed
from examples.credit_cards.switch import NUM_USERS, Traffic
from examples.credit_cards.teach import rate_applicants


class FakeClient:
    """Answers after a moment; fails where it is told to; caches what it was asked."""

    def __init__(self, fails_on: str = "", caches: bool = True) -> None:
        self.fails_on, self.caches = fails_on, caches
        self.asked: list[tuple[str, Any]] = []

    async def stream(self, model: str, messages: Sequence[Any], *, fresh: bool = False) -> Answer:
        return await self.whole(model, messages, fresh=fresh)

    async def whole(self, model: str, messages: Sequence[Any], *, fresh: bool = False) -> Answer:
        known = self.caches and (model, messages) in self.asked and not fresh
        self.asked.append((model, messages))
        await asyncio.sleep(0.002)
        if model == self.fails_on:
            raise ConnectionError("refused")
        return Answer(model, "text", 0.0, 0.001, 0.002, 5, "hit" if known else "miss", "stop")


def screen() -> Screen:
    return Screen(Console(file=io.StringIO()))


async def test_users_go_over_to_the_adapter_and_finish_what_they_began() -> None:
    client = FakeClient()
    traffic = Traffic(client, [[{"role": "user", "content": str(i)}] for i in range(4)])  # type: ignore[arg-type]
    traffic.begin()
    traffic.begin()  # once is enough
    await asyncio.sleep(0.02)
    assert traffic.num_in_flight == NUM_USERS
    traffic.model = ADAPTER
    await asyncio.sleep(0.02)
    await traffic.end()
    assert traffic.num_in_flight == 0
    models = [answer.model for answer in traffic.answers]
    assert models == sorted(models, key=[BASE, ADAPTER].index)
    assert set(models) == {BASE, ADAPTER}
    assert len(traffic.answers) == len(client.asked)
    assert traffic.failures == []


async def test_a_user_that_fails_is_counted_and_goes_on() -> None:
    traffic = Traffic(FakeClient(fails_on=ADAPTER), [[], []])  # type: ignore[arg-type]
    traffic.begin()
    await asyncio.sleep(0.01)
    traffic.model = ADAPTER
    await asyncio.sleep(0.02)
    await traffic.end()
    assert traffic.failures == ["ConnectionError: refused"] * len(traffic.failures)
    assert len(traffic.failures) >= NUM_USERS


async def test_speed_insists_on_first_calls_and_cached_calls() -> None:
    prompts: Any = [[{"role": "user", "content": str(i)}] for i in range(3)]
    speed = await measure_speed(FakeClient(), prompts, screen())  # type: ignore[arg-type]
    assert len(speed.first_s) == len(speed.cached_s) == 3
    assert speed.tokens_per_s == pytest.approx(2500)
    client: Any = FakeClient(caches=False)
    with pytest.raises(StageError, match="3 of 3 repeated calls were not the cached answer"):
        await measure_speed(client, prompts, screen())
    client = FakeClient()
    client.asked = [(ADAPTER, prompt) for prompt in prompts]
    with pytest.raises(StageError, match="3 of 3 first calls came from the cache"):
        await measure_speed(client, prompts, screen())


async def test_gather_keeps_order_and_bounds_concurrency() -> None:
    running = peak = 0

    async def call(item: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001 * (5 - item % 5))
        running -= 1
        return item * 10

    assert await gather(range(12), call, concurrency=4) == [i * 10 for i in range(12)]
    assert peak == 4


def test_nobody_is_in_two_lists() -> None:
    plan = quick(Plan())
    found = rate_applicants(plan, screen())
    lists = (found.asked, found.for_latency, found.for_speculation)
    values = [applicant.values for applicants in lists for applicant in applicants]
    assert len(set(values)) == len(values)
    assert len(found.for_speculation) == plan.num_fresh


def test_openings_differ_by_words_not_by_figures() -> None:
    texts = [
        "You were rated poor. Your debt ratio of 61% hurt. More.",
        "You were rated poor. Your debt ratio of 7% hurt. Other.",
        "You were rated good. Your income of $54,000 helped.",
    ]
    assert count_openings(texts) == 2


def test_a_command_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    product = Product(tmp_path / "home", screen())
    with pytest.raises(StageError, match="quickmatch get failed: no dataset named 'x'"):
        product.run("get", "dataset", "x")
    assert product.run("list", "datasets") == []
    product.close()


def test_a_process_that_ends_too_early_is_told_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["sh", "-c", "echo starting; echo error: port 1 in use; exit 2"]
    with (
        background(command, log, {}, keep=lambda: False) as process,
        pytest.raises(StageError, match=r"the server ended with code 2: port 1 in use"),
    ):
        wait_until(lambda: None, process, log, "the server", 10.0)


def test_a_background_process_ends_with_its_block_unless_kept(tmp_path: Path) -> None:
    for keeps in (False, True):
        with background(["sleep", "60"], tmp_path / "log", {}, keep=lambda k=keeps: k) as process:  # type: ignore[misc]
            assert process.poll() is None
        assert (process.poll() is None) is keeps
    process.kill()
    process.wait()
