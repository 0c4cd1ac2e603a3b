"""Rollback: a head that passes its gate and is worse for the traffic as a whole goes by itself.

A real server (`quickmatch serve`, `speculation.adapt` on, heads alone draft) has a head that suits
most of its calls. One caller in four asks for something else, and is the only one whose calls are
recorded. So the next head is trained on those calls and beats the one that stands, on calls of that
caller that it has not seen; then it is put live, does worse on all the others', and is rolled back.
Nothing is forced: gate, swap and verdict are the loop's own.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.contender import LOGS
from benchmarks.rows import Row, at_least, single
from benchmarks.speculation.bench import Bench
from benchmarks.speculation.drift_rates import Window, mean
from benchmarks.speculation.live import Client
from benchmarks.speculation.workloads import CREDIT, CREDIT_DEEP, Item, credit
from examples.credit_cards.product import Product, StageError
from quickmatch.core.errors import QuickmatchError

_MODEL, _HEAD = "target", "good"
_WINDOW = 20  # calls between two looks at the counters
_OTHERS = 3  # calls that are not recorded, to one that is
_COMPARED = 4  # windows before the swap, and after it is undone
_MOST_CALLS = 4000
_ENDS = ("kept", "rolled_back", "failed")
_OPTIONS = (
    *("--cache-ttl", "0"),
    *("--set", "speculation.drafters=head"),
    *("--set", "speculation.adapt=true"),
    *("--set", "speculation.adapt_min_requests=60"),
    *("--set", "speculation.adapt_max_requests=60"),
    *("--set", "speculation.adapt_watch_requests=20"),
    *("--set", "speculation.adapt_interval_s=3600"),  # one training
)


def measure_rollback(bench: Bench) -> None:
    """Add the rows."""
    with bench.screen.stage("rollback", "a head that is good for one caller in four"):
        product = Product(LOGS / "rollback-home", bench.screen)
        try:
            bench.report.add(*_run(bench, product))
        except (StageError, QuickmatchError, httpx.HTTPError) as error:
            bench.report.add(Row(measure="rollback", value=None, unit="", note=str(error)))
        finally:
            product.close()
        bench.write()


@dataclass(slots=True)
class _Course:
    """What happened, window by window."""

    windows: list[Window] = field(default_factory=list)
    swapped: int | None = None  # windows before the new head was live
    undone: int | None = None  # and before the loop had done with it

    @property
    def num_calls(self) -> int:
        return self.windows[-1].request if self.windows else 0

    @property
    def is_over(self) -> bool:
        return self.undone is not None and len(self.windows) >= self.undone + _COMPARED

    def note(self, window: Window, kinds: list[str]) -> None:
        self.windows.append(window)
        if self.swapped is None and "swapped" in kinds:
            self.swapped = len(self.windows)
        if self.undone is None and set(kinds) & set(_ENDS):
            self.undone = len(self.windows)


def _run(bench: Bench, product: Product) -> list[Row]:
    plan, parts = bench.plan, bench.parts[CREDIT_DEEP]
    if parts.head is None:
        raise StageError("its target has no head")
    product.run("create", "model", _MODEL, "--path", str(parts.target))
    product.run("create", "model", _HEAD, "--path", str(parts.head), "--base-model", _MODEL)
    course, calls = _Course(), _windows(credit(plan.num_train, _MOST_CALLS, plan.seed).test)
    with product.serving(_MODEL, lambda: False, *_OPTIONS) as url:
        product.run("load-draft", _HEAD, "--deployment", _MODEL, "--wait")
        client, end = Client(url, product.store, _MODEL), time.monotonic() + plan.rollback_s
        with bench.screen.bar("calls", _MOST_CALLS) as bar:
            while time.monotonic() < end and not course.is_over:
                items, recorded = next(calls)
                window = client.window(items, course.num_calls, recorded=recorded)
                events = client.events()
                course.note(window, [event.event for event in events])
                bar.show(course.num_calls, events[-1].event if events else "")
        for event in events:
            bench.screen.say(f"{event.event}: {event.text} {event.figures or ''}")
        is_back = any(event.event == "rolled_back" for event in events)
        is_back = is_back and client.drafts() == {"": f"{_HEAD}@1"}
    return _rows(course, is_back=is_back)


def _windows(explained: Sequence[Item]) -> Iterator[tuple[list[Item], list[Item]]]:
    """Yield each window's calls, and those of them that are recorded: every fourth."""
    others, rest = _status_checks(), iter(explained)
    while True:
        recorded = list(itertools.islice(others, _WINDOW // (1 + _OTHERS)))
        turns = [(one, *itertools.islice(rest, _OTHERS)) for one in recorded]
        yield list(itertools.chain.from_iterable(turns)), recorded


def _status_checks() -> Iterator[Item]:
    """Calls of another kind than the target was tuned on; what it answers is always alike."""
    for number in itertools.count():
        text = f"Status check {number}: name the parts that are up, then say ready {number % 9}."
        yield Item(CREDIT, ({"role": "user", "content": text},))


def _rows(course: _Course, *, is_back: bool) -> list[Row]:
    rows = [single("rollback: the earlier head stands again", [float(is_back)], "", at_least(1))]
    windows, swapped, undone = course.windows, course.swapped, course.undone
    if swapped is None or undone is None or not course.is_over:
        return rows
    periods = (
        ("tokens a forward before the swap", windows[max(0, swapped - _COMPARED) : swapped]),
        ("with the head that was rolled back", windows[swapped:undone]),
        ("after it", windows[undone:]),
    )
    rows += [
        single(f"rollback: {name}", [mean(period, "accepted_length")], "")
        for name, period in periods
        if period
    ]
    num_calls = _WINDOW * (undone - swapped)
    return [*rows, single("rollback: from the swap to its undoing", [num_calls], "calls")]
