"""Drift: the traffic changes from one workload to another, and the server mends itself.

A real server (`quickmatch serve`, calls recorded, `speculation.adapt` on) gets calls of workload A
over HTTP, one after the other, until a head has been trained on them; then calls of B. Nothing
tells it of the change. Every few calls its counters are read from /metrics:

- the hit rate falls, by more than chance: the first window of B against the last ones of A;
- it is back by itself: from some call of B on, the windows stay within 10 % of B's steady state,
  the mean over the last quarter of B's calls.

The picture shows both rates over the calls, with what the adaptation loop did and when.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.contender import LOGS
from benchmarks.rows import Bar, Row, at_least, single
from benchmarks.speculation.bench import Bench
from benchmarks.speculation.drift_rates import Window, mean, recovered_at
from benchmarks.speculation.live import Client
from benchmarks.speculation.plots import write_drift_plot
from benchmarks.speculation.targets import MIXED_ROWS
from benchmarks.speculation.workloads import CODE_EDITS, MIXED, Item, NoData, edits, from_files
from examples.credit_cards.product import Product, StageError
from examples.credit_cards.screen import Screen
from quickmatch.core.errors import QuickmatchError
from quickmatch.store.adaptation import AdaptationEvent

FIRST, SECOND = CODE_EDITS, "intent_json"
_MODEL = "target"
_WINDOW = 10  # calls between two looks at the counters
_DONE = ("kept", "rolled_back", "failed")
_MOST_CALLS = 5000
_SETTLED = 3  # windows that tell where a rate stands
_WITHIN = 0.9  # of the steady state counts as back
_SEEN = 0.05  # a fall that is no chance: twice the spread of windows of one workload
_OPTIONS = (
    "--trace",
    "--cache-ttl",
    "0",
    *("--set", "speculation.adapt=true"),
    *("--set", "speculation.adapt_min_requests=80"),
    *("--set", "speculation.adapt_max_requests=240"),
    *("--set", "speculation.adapt_watch_requests=20"),
    *("--set", "speculation.adapt_interval_s=45"),
)


@dataclass(slots=True)
class Course:
    """What happened, call by call."""

    windows: list[Window] = field(default_factory=list)
    switch: int = 0  # the first call of B
    marks: list[tuple[int, str]] = field(default_factory=list)  # call, what the loop did there

    @property
    def num_calls(self) -> int:
        """Calls so far."""
        return self.windows[-1].request if self.windows else 0

    def note(self, events: Sequence[AdaptationEvent]) -> None:
        """Mark what is new among the loop's events."""
        for event in events[len(self.marks) :]:
            self.marks.append((self.num_calls, event.event))


def measure_drift(bench: Bench) -> None:
    """Add the rows and write the plot."""
    with bench.screen.stage("drift", f"{FIRST}, then {SECOND}, through the whole product"):
        product = Product(LOGS / "drift-home", bench.screen)
        try:
            course = _run(bench, product)
        except (NoData, StageError, QuickmatchError, httpx.HTTPError) as error:
            bench.report.add(_missing(str(error)))
            return
        finally:
            product.close()
        bench.report.add(*_rows(course))
        bench.report.samples["drift"] = {
            "hit rate": [window.hit_rate for window in course.windows],
            "tokens/s": [window.tokens_per_s for window in course.windows],
            "request": [float(window.request) for window in course.windows],
        }
        path = bench.folder / "speculation-drift.png"
        write_drift_plot(course.windows, course.switch, course.marks, path)
        bench.write()


def _run(bench: Bench, product: Product) -> Course:
    plan, parts = bench.plan, bench.parts[MIXED]
    # None that the target learnt from, and none twice: an answer given before is no news.
    first = edits(0, _MOST_CALLS, plan.seed + 50).test
    found = from_files(SECOND, _MOST_CALLS, _MOST_CALLS, plan.seed)
    second = [*found.train[MIXED_ROWS[SECOND] :], *found.test]
    product.run("create", "model", _MODEL, "--path", str(parts.target))
    course = Course()
    with product.serving(_MODEL, lambda: False, *_OPTIONS) as url:
        client = Client(url, product.store, _MODEL)
        _phase(course, client, first, plan.drift_calls[0], plan.drift_s[0], bench.screen)
        course.switch = course.num_calls
        _phase(course, client, second, plan.drift_calls[1], plan.drift_s[1], bench.screen)
        for event in client.events():
            bench.screen.say(f"{event.event}: {event.text} {event.figures or ''}")
    return course


def _phase(
    course: Course,
    client: Client,
    items: Sequence[Item],
    least: int,
    within_s: float,
    screen: Screen,
) -> None:
    """Send calls until there were enough and the loop has come to an end, or time is up."""
    unused, began = iter(items), time.monotonic()
    first, num_known = course.num_calls, len(client.events())
    with screen.bar(f"calls of {items[0].workload}", least) as bar:
        while some := list(itertools.islice(unused, _WINDOW)):
            course.windows.append(client.window(some, course.num_calls))
            events = client.events()
            course.note(events)
            num_done = course.num_calls - first
            bar.show(num_done, events[-1].event if events else "", total=max(least, num_done))
            is_settled = any(event.event in _DONE for event in events[num_known:])
            is_late = time.monotonic() - began > within_s
            if is_late or (is_settled and num_done >= least):
                return


def _rows(course: Course) -> list[Row]:
    """The hit rate is judged; tokens a forward say the same more clearly."""
    return [
        *_rate_rows(course, "hit_rate", "hit rate", at_least(_SEEN), at_least(_WITHIN)),
        *_rate_rows(course, "accepted_length", "accepted length", None, None),
    ]


def _rate_rows(
    course: Course, rate: str, label: str, fall: Bar | None, hold: Bar | None
) -> list[Row]:
    before = [w for w in course.windows if w.request <= course.switch]
    after = [w for w in course.windows if w.request > course.switch]
    steady = mean(after[-max(1, len(after) // 4) :], rate)
    settled, fallen = mean(before[-_SETTLED:], rate), mean(after[:1], rate)
    back = recovered_at(after, _WITHIN * steady, rate)
    num_calls = [] if back is None else [float(back - course.switch)]
    name = f"drift, {FIRST} then {SECOND}: {label}"
    last = mean(after[-_SETTLED:], rate) / steady
    return [
        single(f"{name} before", [settled], ""),
        single(f"{name} in the first {_WINDOW} calls after", [fallen], ""),
        single(f"{name}, steady state after", [steady], ""),
        single(f"{name} fell by", [1 - fallen / settled], "", fall),
        single(f"{name}, back: last {_SETTLED * _WINDOW} calls ÷ steady state", [last], "", hold),
        single(f"{name}, calls until back within 10 % to stay", num_calls, "calls"),
    ]


def _missing(reason: str) -> Row:
    return Row(measure=f"drift, {FIRST} then {SECOND}", value=None, unit="", note=reason)
