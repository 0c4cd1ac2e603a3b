"""The pictures of a run: tokens a second by arm, and what happens when the traffic changes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import Report
from benchmarks.speculation.arms import ADAPTED, OURS, PLAIN
from benchmarks.speculation.drift_rates import Window
from benchmarks.speculation.turns import ALL, measure_name
from benchmarks.speculation.workloads import CREDIT, PROSE

_OURS, _PEERS, _PLAIN, _INK = "#d9480f", "#9aa5b1", "#2b6cb0", "#33373d"
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "text.color": _INK,
}
_PANELS = ((CREDIT, 1), (ALL, 1), (CREDIT, 8), (PROSE, 1))


def write_plots(report: Report, folder: Path) -> None:
    """Write speculation-speed.png into the folder; nothing if no speed was measured."""
    found = [
        (panel, values)
        for panel in _PANELS
        if (values := _medians(report, measure_name("decode", *panel)))
    ]
    if not found:
        return
    with mpl.rc_context(_STYLE):
        height = 0.8 + 0.22 * max(len(values) for _, values in found)
        figure = Figure(
            figsize=(5.2 * min(2, len(found)), height * -(-len(found) // 2)), layout="constrained"
        )
        axes = figure.subplots(-(-len(found) // 2), min(2, len(found)), squeeze=False).flatten()
        for panel, ((workload, concurrency), values) in zip(axes, found, strict=False):
            _bars(panel, values)
            panel.set_title(f"{workload}, {concurrency} at once", loc="left", fontsize=9)
        for unused in axes[len(found) :]:
            unused.set_visible(False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "speculation-speed.png", dpi=140)


def write_drift_plot(
    windows: Sequence[Window], switch: int, marks: Sequence[tuple[int, str]], path: Path
) -> None:
    """Draw hit rate, accepted length and tokens/s over requests.

    switch: the request with which the traffic changes. marks: request, and what the adaptation
    loop did there.
    """
    names = (
        ("hit_rate", "hit rate"),
        ("accepted_length", "tokens a forward"),
        ("tokens_per_s", "tokens/s"),
    )
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 5.4), layout="constrained")
        panels = figure.subplots(len(names), 1, sharex=True)
        requests = [window.request for window in windows]
        for axes, (name, label) in zip(panels, names, strict=True):
            axes.plot(requests, [getattr(w, name) for w in windows], color=_OURS, linewidth=1.4)
            axes.axvline(switch, color=_INK, linewidth=0.8, linestyle="--")
            for request, _ in marks:
                axes.axvline(request, color=_PLAIN, linewidth=0.6)
            axes.set(ylabel=label, ylim=(0, None))
        for place, (request, told) in enumerate(marks):
            height = panels[0].get_ylim()[1] * (1.0 - 0.09 * (place % 8))
            panels[0].text(request, height, f" {told}", va="top", fontsize=6, color=_PLAIN)
        panels[0].set_title("the traffic changes at the dashed line", loc="left", fontsize=9)
        panels[-1].set(xlabel="requests")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=140)


def _medians(report: Report, name: str) -> dict[str, float]:
    return {arm: median(found[name]) for arm, found in report.samples.items() if name in found}


def _bars(axes: Axes, values: Mapping[str, float]) -> None:
    names = list(values)
    colours = [_OURS if n == ADAPTED else _PLAIN if n in OURS else _PEERS for n in names]
    axes.barh(names, list(values.values()), color=colours, height=0.7)
    axes.axvline(values[PLAIN], color=_INK, linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.set(xlabel="tokens/s while decoding")
