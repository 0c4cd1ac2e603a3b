"""Asks in phases, and keeps hit rate and speed over the requests, as the system adapts.

What is asked in one phase is asked in no other, and nothing comes from the exact cache: no phase
profits from its own answers but through what the engine learns of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from examples.credit_cards.calls import Answer, Client, gather, told
from examples.credit_cards.meter import Meter, Reading
from examples.credit_cards.plan import ADAPTER
from examples.credit_cards.product import StageError
from examples.credit_cards.prompts import Message
from examples.credit_cards.screen import Screen
from quickmatch.core.speculation_counts import SpeculationCounts

PHASE_LABELS = {  # of those that figures are told of
    "plain": "plain",
    "cold": "index empty",
    "warm": "index warm",
    "head": "with a head",
}
NUM_A_POINT = 5  # requests; of several callers, as many for each


@dataclass(frozen=True, slots=True)
class Point:
    """Some requests in a row."""

    phase: str
    first: int  # number of the first of them, over all phases
    num_requests: int
    hit_rate: float | None  # None: nothing was drafted
    tokens_per_s: float | None  # that one caller got; None: several called at once


@dataclass(frozen=True, slots=True)
class Phase:
    """What was measured of one phase."""

    name: str
    answers: list[Answer]
    counts: SpeculationCounts  # of this phase alone
    head_share: float | None  # of the accepted tokens, those that the head drafted
    index_tokens: int  # in the suffix index, when it began

    @property
    def tokens_per_s(self) -> float:
        """What one caller gets."""
        return _tokens_per_s(self.answers)


class Course:
    """The requests of the stage, in order."""

    def __init__(self, client: Client, meter: Meter, screen: Screen) -> None:
        self.points: list[Point] = []
        self._client, self._meter, self._screen = client, meter, screen
        self._num_requests = 0

    async def ask(
        self, name: str, prompts: Sequence[list[Message]], *, concurrency: int = 1
    ) -> Phase:
        """Ask each prompt once, on an idle server. Raises StageError if a call fails."""
        answers: list[Answer] = []
        begin = last = await self._meter.settled()
        size = NUM_A_POINT * concurrency
        with self._screen.bar(f"{name}, {concurrency} at a time", len(prompts)) as bar:
            for first in range(0, len(prompts), size):
                group = await self._answer(prompts[first : first + size], concurrency)
                answers += group
                bar.show(len(answers))
                is_last = len(answers) == len(prompts)
                now = await (self._meter.settled() if is_last else self._meter.read())
                speed = _tokens_per_s(group) if concurrency == 1 else None
                self._note(name, len(group), now.counts.since(last.counts), speed)
                last = now
        return _phase(name, answers, begin, last)

    async def others(self, name: str, num_requests: int, begin: Reading) -> None:
        """Note requests that were asked elsewhere since `begin`."""
        now = await self._meter.settled()
        self._note(name, num_requests, now.counts.since(begin.counts), None)

    async def _answer(self, prompts: Sequence[list[Message]], concurrency: int) -> list[Answer]:
        async def ask(prompt: list[Message]) -> Answer:
            return await self._client.stream(ADAPTER, prompt, fresh=True)

        try:
            return await gather(prompts, ask, concurrency)
        except Exception as error:
            raise StageError(f"a call to {ADAPTER} failed: {told(error)}") from error

    def _note(
        self, name: str, num_requests: int, counts: SpeculationCounts, speed: float | None
    ) -> None:
        if num_requests:
            point = Point(name, self._num_requests, num_requests, counts.hit_rate, speed)
            self.points.append(point)
            self._num_requests += num_requests


def _phase(name: str, answers: list[Answer], begin: Reading, end: Reading) -> Phase:
    counts = end.counts.since(begin.counts)
    from_head = end.num_from_head - begin.num_from_head
    share = from_head / counts.num_accepted if counts.num_accepted else None
    return Phase(name, answers, counts, share, begin.index_tokens)


def _tokens_per_s(answers: Sequence[Answer]) -> float:
    return sum(a.num_tokens for a in answers) / sum(a.total_s for a in answers)
