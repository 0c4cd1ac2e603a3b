"""Phases and their figures: sums of the engine, read where everyone reads them, over requests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from examples.credit_cards.meter import Reading, parse
from examples.credit_cards.phases import NUM_A_POINT, Course
from examples.credit_cards.plan import ADAPTER
from examples.credit_cards.plots import adaptation_plot
from examples.credit_cards.product import StageError
from quickmatch.core.speculation_counts import SpeculationCounts
from quickmatch.observe.metrics import Metrics
from tests.unit.examples.test_stages import FakeClient, screen

REPORT = {
    "num_verified": 40,
    "num_plain": 10,
    "num_proposed": 120,
    "num_accepted": 90,
    "num_emitted": 140,
    "busy_s": 0.5,
    "plain_s": 1.25,
    "draft_s": 0.01,
    "sources": {
        "suffix_global": {"num_proposed": 80, "num_accepted": 70},
        "head": {"num_proposed": 40, "num_accepted": 20},
    },
    "index_tokens": 1234,
}


def rendered(**reports: dict[str, Any] | None) -> str:
    metrics = Metrics()
    for name, report in reports.items():
        metrics.set_engine(name, {"speculation": report}, num_adapters=0)
    return metrics.render().decode()


def test_figures_are_those_that_the_engine_reported() -> None:
    other = {**REPORT, "num_emitted": 9999}
    reading = parse(rendered(mine=REPORT, other=other), "mine")
    assert reading == Reading(SpeculationCounts.of(REPORT), 20, 1234)
    assert reading.counts.hit_rate == 0.75
    assert reading.counts.speed_up == 2.5


def test_an_engine_that_does_not_speculate_has_zeros() -> None:
    assert parse(rendered(mine=None), "mine") == Reading(SpeculationCounts(), 0, 0)


@dataclass
class Engine:
    """What a server would report: of each answered request a few drafts more."""

    client: FakeClient
    read_at: list[int] = field(default_factory=list)

    async def read(self) -> Reading:
        count = len(self.client.asked)
        self.read_at.append(count)
        counts = SpeculationCounts(
            num_verified=count,
            num_proposed=4 * count,
            num_accepted=3 * count,
            num_emitted=4 * count,
        )
        return Reading(counts, count, 100 * count)

    async def settled(self) -> Reading:
        return await self.read()


Make = Callable[..., tuple[Course, FakeClient]]


@pytest.fixture
def make() -> Make:
    def made(**options: Any) -> tuple[Course, FakeClient]:
        client = FakeClient(**options)
        engine: Any = Engine(client)
        return Course(client, engine, screen()), client  # type: ignore[arg-type]

    return made


async def test_a_phase_has_its_own_figures_alone(make: Make) -> None:
    course, client = make()
    prompts: Any = [[{"role": "user", "content": str(i)}] for i in range(12)]
    await course.ask("plain", prompts[:5])
    found = await course.ask("cold", prompts[5:])
    assert [messages for _, messages in client.asked] == prompts
    assert found.counts.num_accepted == 21
    assert found.counts.hit_rate == 0.75
    assert found.head_share == pytest.approx(1 / 3)
    assert found.index_tokens == 500
    assert found.tokens_per_s == pytest.approx(2500)
    spans = [(p.phase, p.first, p.num_requests) for p in course.points]
    assert spans == [("plain", 0, 5), ("cold", 5, NUM_A_POINT), ("cold", 10, 2)]
    assert all(p.hit_rate == 0.75 and p.tokens_per_s == 2500 for p in course.points)


async def test_several_callers_have_no_speed_of_one(make: Make) -> None:
    course, _ = make()
    prompts: Any = [[] for _ in range(30)]
    await course.ask("others", prompts, concurrency=4)
    begin = Reading(SpeculationCounts(), 0, 0)
    await course.others("others", 3, begin)
    await course.others("others", 0, begin)  # nobody asked: no point
    spans = [(p.first, p.num_requests, p.tokens_per_s) for p in course.points]
    assert spans == [(0, 20, None), (20, 10, None), (30, 3, None)]
    assert adaptation_plot(course.points).startswith("<svg")


async def test_a_call_that_fails_ends_the_phase(make: Make) -> None:
    course, _ = make(fails_on=ADAPTER)
    with pytest.raises(StageError, match=r"a call to credit-explainer failed: .*refused"):
        await course.ask("plain", [[]])
