"""The report's plots, as inline SVG: no file beside the page, no script in it."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.credit_cards.findings import Findings, Measure
from examples.credit_cards.phases import PHASE_LABELS, Point
from examples.credit_cards.rating import Importance
from examples.credit_cards.screen import Span
from quickmatch.store.documents import JobStep

COLOURS = {"base": "#9aa5b1", "tuned": "#d9480f", "teacher": "#2b6cb0"}
CACHED = "#2f855a"
INK = "#33373d"
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, sharp, to be found by a search
    "svg.hashsalt": "quickmatch",  # the same data gives the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def all_plots(found: Findings) -> dict[str, str]:
    """Return each plot's SVG by the name that the page knows it by."""
    shares = [m for m in found.quality.measures if m.unit == "%"]
    return {
        "loss": loss_plot(found.switch.steps),
        "accuracy": accuracy_plot(shares),
        "latency": latency_plot(found.speed.first_s, found.speed.cached_s),
        "adaptation": adaptation_plot(found.speculation.course),
        "timeline": timeline_plot(found.timeline),
        "importance": importance_plot(found.rating_model.importances),
    }


def loss_plot(steps: Sequence[JobStep]) -> str:
    """Training loss by step, and its running mean."""
    known = [(step.step, step.loss) for step in steps if step.loss is not None]
    numbers, losses = [n for n, _ in known], [loss for _, loss in known]
    smooth = list(accumulate(losses, lambda mean, loss: 0.9 * mean + 0.1 * loss))
    with _figure(6.4, 2.6) as (axes, result):
        axes.plot(numbers, losses, color=COLOURS["base"], linewidth=0.8, label="each step")
        axes.plot(numbers, smooth, color=COLOURS["tuned"], linewidth=1.6, label="running mean")
        axes.set(xlabel="step", ylabel="loss (nats a token)", ylim=(0, None))
        axes.legend(frameon=False)
    return result[0]


def accuracy_plot(measures: Sequence[Measure]) -> str:
    """Shares before and after with their intervals, the teacher beside them."""
    with _figure(6.4, 2.8) as (axes, result):
        for offset, who in ((-0.25, "base"), (0.0, "tuned"), (0.25, "teacher")):
            having = [(i, m.by[who]) for i, m in enumerate(measures) if who in m.by]
            axes.bar(
                [i + offset for i, _ in having],
                [100 * e.value for _, e in having],
                width=0.22,
                color=COLOURS[who],
                label=who,
                yerr=[
                    [100 * max(0.0, e.value - e.low) for _, e in having],
                    [100 * max(0.0, e.high - e.value) for _, e in having],
                ],
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
        axes.set_xticks(range(len(measures)), [m.label for m in measures])
        axes.set(ylabel="%", ylim=(0, 104))
        axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.16))
    return result[0]


def latency_plot(first_s: Sequence[float], cached_s: Sequence[float]) -> str:
    """Every first call and every cached call, on a logarithmic axis."""
    with _figure(6.4, 1.9) as (axes, result):
        for row, (values, colour) in enumerate(((first_s, COLOURS["tuned"]), (cached_s, CACHED))):
            spread = [row + 0.5 * ((i * 0.618) % 1 - 0.5) for i in range(len(values))]
            axes.scatter([1000 * v for v in values], spread, s=12, alpha=0.6, color=colour)
        axes.set_xscale("log")
        axes.set_yticks([0, 1], ["first call", "cached call"])
        axes.set(xlabel="milliseconds at the client", ylim=(-0.6, 1.6))
        axes.grid(axis="x", alpha=0.3)
    return result[0]


def adaptation_plot(course: Sequence[Point]) -> str:
    """Hit rate above, one caller's speed below, over the requests; where a phase begins is told."""
    middles = [point.first + point.num_requests / 2 for point in course]
    rates = [math.nan if p.hit_rate is None else 100 * p.hit_rate for p in course]
    speeds = [math.nan if p.tokens_per_s is None else p.tokens_per_s for p in course]
    with _panels(6.4, 3.6, 2) as ((above, below), result):
        for axes, values in ((above, rates), (below, speeds)):
            axes.plot(middles, values, color=COLOURS["tuned"], linewidth=0.8, marker=".")
            _show_phases(axes, course)
        above.set(ylabel="hit rate (%)", ylim=(0, 104))
        above.tick_params(labelbottom=False)
        for first, phase in _phases(course):
            label = PHASE_LABELS.get(phase, "")
            above.text(first, 1.04, label, transform=above.get_xaxis_transform(), fontsize=8)
        below.set(ylabel="tokens/s, one caller", xlabel="requests answered", ylim=(0, None))
    return result[0]


def _phases(course: Sequence[Point]) -> Iterator[tuple[int, str]]:
    """Where each phase begins, and its name."""
    for before, point in zip([None, *course], course, strict=False):
        if before is None or before.phase != point.phase:
            yield point.first, point.phase


def _show_phases(axes: Axes, course: Sequence[Point]) -> None:
    """Draw a line where a phase begins; grey where several called at once."""
    for first, phase in _phases(course):
        if phase in PHASE_LABELS:
            axes.axvline(first, color=INK, linewidth=0.8, linestyle=":")
    for point in course:
        if point.tokens_per_s is None:
            axes.axvspan(point.first, point.first + point.num_requests, color="#f0ece6", lw=0)
    axes.set_xlim(0, course[-1].first + course[-1].num_requests)


def timeline_plot(timeline: Sequence[Span]) -> str:
    """The stages of the run, one bar each."""
    with _figure(6.4, 0.5 + 0.32 * len(timeline)) as (axes, result):
        for row, span in enumerate(timeline):
            length = span.end_s - span.start_s
            axes.barh(row, length, left=span.start_s, color=COLOURS["tuned"], height=0.6)
            axes.text(span.end_s, row, f" {length:.1f} s", va="center")
        axes.set_yticks(range(len(timeline)), [span.name for span in timeline])
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set(xlabel="seconds since the start")
    return result[0]


def importance_plot(importances: Sequence[Importance]) -> str:
    """How much the rating model's accuracy drops when a field is shuffled."""
    with _figure(6.4, 0.5 + 0.25 * len(importances)) as (axes, result):
        axes.barh(
            [i.field.label for i in importances],
            [100 * i.drop for i in importances],
            xerr=[100 * i.spread for i in importances],
            color=COLOURS["teacher"],
            error_kw={"ecolor": INK, "elinewidth": 1},
        )
        axes.invert_yaxis()
        axes.set(xlabel="accuracy lost when the field is shuffled (points)")
    return result[0]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Axes, list[str]]]:
    """Yield axes to draw on, and a list that holds the SVG when the block has ended."""
    with _panels(width, height, 1) as ((axes,), result):
        yield axes, result


@contextmanager
def _panels(width: float, height: float, count: int) -> Iterator[tuple[list[Axes], list[str]]]:
    """Yield so many axes, one under the other, and the list for the SVG."""
    result: list[str] = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield [figure.add_subplot(count, 1, i + 1) for i in range(count)], result
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    result.append(text[text.index("<svg") :])
