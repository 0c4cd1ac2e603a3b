"""The report: numbers under their agreed names, a page that stands alone, tables for people."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from examples.credit_cards.applicants import simulate
from examples.credit_cards.calls import Answer
from examples.credit_cards.findings import (
    Findings,
    Measure,
    Memory,
    Quality,
    Sample,
    Speculation,
    Speed,
    percentile,
)
from examples.credit_cards.phases import Phase, Point
from examples.credit_cards.plan import ADAPTER, BASE, Plan, parse_arguments
from examples.credit_cards.provenance import provenance
from examples.credit_cards.rating import RatingModel
from examples.credit_cards.report import figure_rows, show, write_report
from examples.credit_cards.screen import Screen, Span
from examples.credit_cards.switch import Switch
from examples.credit_cards.teach import Lessons
from quickmatch.core.speculation_counts import SpeculationCounts
from quickmatch.store.documents import Job, JobState, JobStep, Model, ModelKind
from quickmatch.tuning.metrics import Score


def answer(model: str, total_s: float) -> Answer:
    return Answer(model, "text", 1000.0, total_s / 4, total_s, 80, "miss", "stop")


def phase(name: str, total_s: float, counts: SpeculationCounts, head: float | None = None) -> Phase:
    return Phase(name, [answer(ADAPTER, total_s)] * 4, counts, head, 100)


@pytest.fixture
def speculation() -> Speculation:
    drafted = SpeculationCounts(
        num_verified=90, num_plain=10, num_proposed=300, num_accepted=240, num_emitted=340
    )
    job = Job(
        id="draftj-1",
        created_at=200.0,
        job_type="draft",
        base_model=BASE,
        output_model="credit-draft",
        started_at=200.0,
        finished_at=290.0,
        metrics={"message": "published as credit-draft@1"},
    )
    course = [
        Point("plain", 0, 4, None, 400.0),
        Point("cold", 4, 4, 0.1, 400.0),
        Point("others", 8, 16, 0.7, None),
        Point("warm", 24, 4, 0.8, 800.0),
        Point("head", 28, 4, 0.8, 1000.0),
    ]
    phases = [
        phase("plain", 0.2, SpeculationCounts()),
        phase("cold", 0.2, SpeculationCounts(num_plain=340, num_emitted=340)),
        phase("warm", 0.1, drafted),
        phase("head", 0.08, drafted, head=0.25),
    ]
    return Speculation(
        phases=phases,
        course=course,
        job=job,
        swap_s=0.0042,
        num_during_swap=31,
        num_failed=0,
        num_compared=4,
        num_same=3,
    )


@pytest.fixture(scope="module")
def rating_model() -> RatingModel:
    return RatingModel(simulate(120, seed=1), seed=1)


@pytest.fixture
def found(rating_model: RatingModel, speculation: Speculation) -> Findings:
    plan = Plan()
    job = Job(
        id="sftj-1",
        created_at=100.0,
        state=JobState.COMPLETED,
        base_model=BASE,
        dataset="d",
        output_model=ADAPTER,
        started_at=100.0,
        finished_at=160.0,
    )
    steps = [
        JobStep(id=f"sftj-1/{i:08}", created_at=0.0, job="sftj-1", step=i, loss=3 / i)
        for i in range(1, 9)
    ]
    adapter = Model(
        id=ADAPTER, created_at=0.0, model_kind=ModelKind.ADAPTER, base_model=BASE, size_bytes=2**20
    )
    switch = Switch(job, steps, adapter, 0.42, 0.02, 2, [answer(BASE, 0.3)] * 5, [])
    shares = {"base": Score(0, 0, 0.02, 150), "tuned": Score(0.97, 0.93, 0.99, 150)}
    quality = Quality(
        num_rows=150,
        measures=[
            Measure("fact_accuracy", "fact accuracy", "%", shares),
            Measure("number_accuracy", "number accuracy", "%", shares),
            Measure("perplexity", "perplexity", "", {"tuned": Score(1.8, 1.7, 1.9, 150)}),
        ],
        samples=[Sample("- a <b> & c", {"base": "x & y", "tuned": "z"}, ["leaves out <b>"])],
        num_openings={"base": 3, "tuned": 70},
        tokens_per_s=1500.0,
        concurrency=8,
    )
    return Findings(
        plan=plan,
        rating_model=rating_model,
        lessons=Lessons("scripted writer (a grammar)", [answer("teacher", 0.01)] * 3, 4.0, 3, 3),
        switch=switch,
        quality=quality,
        speed=Speed([0.2, 0.3, 0.25], [0.05, 0.06, 0.07], [0.002, 0.003, 0.0025], 350.0),
        memory=Memory(300 * 2**20, 14 * 2**20, 800 * 2**20, 2**20),
        speculation=speculation,
        timeline=[Span("rate", 0.0, 2.0), Span("teach", 2.0, 9.5)],
        wall_s=300.0,
        provenance=provenance(plan),
    )


def test_json_holds_the_agreed_names(found: Findings, tmp_path: Path) -> None:
    write_report(found, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fact_accuracy"]["base"] == 0
    assert report["fact_accuracy"]["tuned"] == 0.97
    assert report["fact_accuracy"]["interval_95"]["tuned"] == [0.93, 0.99]
    assert report["number_accuracy"]["tuned"] == 0.97
    assert report["adapter_live_s"] == 0.42
    assert report["cached_p50_ms"] == pytest.approx(2.5)
    assert report["latency_ms"] == {"p50": pytest.approx(250), "p95": pytest.approx(300)}
    assert report["tokens_per_s"] == 1500.0
    assert report["wall_s"] == 300.0
    assert report["switch"]["num_failed"] == 0
    assert report["training"]["duration_s"] == 60.0
    drafted = report["speculation"]
    assert drafted["plain"]["hit_rate"] is None
    assert drafted["warm"]["hit_rate"] == pytest.approx(0.8)
    assert drafted["warm"]["accepted_length"] == pytest.approx(3.4)
    assert drafted["head"]["tokens_per_s"] == pytest.approx(1000)
    assert drafted["head"]["speed_up"] == pytest.approx(2.5)
    assert drafted["head"]["head_share"] == 0.25
    assert drafted["same_text_share"] == 0.75
    assert drafted["num_failed"] == 0
    assert drafted["job"]["duration_s"] == 90.0
    assert len(drafted["course"]) == 5
    assert report["provenance"]["arguments"]["lora_rank"] == 8
    assert report["provenance"]["packages"]["torch"]


class _Links(HTMLParser):
    """Collects what a page would load, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "img", "use", "path", "rect"):
            self.open.append(tag)
        self.loaded += [v or "" for k, v in attrs if k in ("src", "href") and tag != "use"]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_page_stands_alone_and_escapes(found: Findings, tmp_path: Path) -> None:
    page = write_report(found, tmp_path).read_text()
    links = _Links()
    links.feed(page)
    assert [link for link in links.loaded if not link.startswith("#")] == []
    assert links.open == []
    assert "<script" not in page
    assert page.count("<svg") == 6
    assert "x &amp; y" in page
    assert "leaves out &lt;b&gt;" in page
    assert "scripted writer (a grammar)" in page
    assert re.search(r"97\.0 % \(93–99\)", page)


def test_same_findings_same_page(found: Findings, tmp_path: Path) -> None:
    first = write_report(found, tmp_path / "a").read_text()
    assert first == write_report(found, tmp_path / "b").read_text()


def test_tables_say_the_same(found: Findings) -> None:
    output = io.StringIO()
    show(found, Screen(Console(file=output, width=80)))
    text = output.getvalue()
    for expected in (
        *("97.0 % (93–99)", "0.42 s", "2.5 ms (100 times faster)", "1,500 tokens/s"),
        *("with a head", "80 %", "25 %", "2.50 ×", "3 of 4", "31, 0 failed", "4.2 ms"),
    ):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(figure_rows(found)) == 13


def test_screen_keeps_the_timeline_and_tells_progress_in_a_log() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output, width=100))
    with screen.stage("teach", "why"), screen.bar("things", 3) as bar:
        bar._said_at = -100.0
        bar.advance()
        bar.advance()
    assert [span.name for span in screen.timeline] == ["teach"]
    assert "things: 1 of 3" in output.getvalue()
    assert "things: 2 of 3" not in output.getvalue()  # at most one line every few seconds


def test_percentile_is_the_nearest_rank() -> None:
    assert percentile([3, 1, 2, 4], 50) == 2
    assert percentile([3, 1, 2, 4], 95) == 4
    assert percentile([7], 50) == 7


def test_arguments_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_arguments(["--quick"]).num_asked == 60
    assert parse_arguments(["--epochs", "7"]).epochs == 7
    assert parse_arguments([]).holdout_share * parse_arguments([]).num_asked == 150
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    for arguments, reason in (
        (["--teacher", "http://x/v1"], "go together"),
        (["--teacher", "http://x/v1", "--teacher-model", "m"], "export TEACHER_API_KEY"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(arguments)
        assert reason in capsys.readouterr().err
