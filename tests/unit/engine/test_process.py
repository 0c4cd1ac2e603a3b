"""The loop of the engine process, run here with a hash in place of the model."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from quickmatch.core.errors import InvalidRequest
from quickmatch.core.grammar import Grammar
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine import process, waiting
from quickmatch.engine.batch import StepBatch, StepResult
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.parent import is_orphan
from quickmatch.engine.process import EngineLoop, resident_bytes
from quickmatch.engine.wire import (
    Cancel,
    Command,
    CommandDone,
    Event,
    Generate,
    LoadAdapter,
    Remember,
    Shutdown,
    Stats,
    Tokens,
    UnloadAdapter,
)
from tests.unit.engine.fake_runner import FakeRunner


class ScriptedChannel:
    """Gives the commands of one turn after the other, then Shutdown once nothing is left."""

    def __init__(self, *turns: list[Command]) -> None:
        self.turns = list(turns)
        self.timeouts: list[float] = []
        self.sent: list[Event] = []

    def receive(self, timeout_s: float) -> list[Command]:
        self.timeouts.append(timeout_s)
        if 0.0 < timeout_s <= process.READING_POLL_S:  # something is being read
            time.sleep(0.001)
            return []
        if self.turns:
            return self.turns.pop(0)
        return [] if timeout_s == 0.0 else [Shutdown()]

    def send(self, events: Iterable[Event]) -> None:
        self.sent.extend(events)


def generate(name: str, **sampling: Any) -> Generate:
    params = SamplingParams(**{"seed": 1, "max_tokens": 5, "ignore_eos": True, **sampling})
    return Generate(request_id=name, prompt_token_ids=[1, 2, 3], sampling=params)


def run(
    channel: ScriptedChannel, runner: FakeRunner | None = None, *, max_waiting: int = 512
) -> int:
    engine = Engine(runner or FakeRunner(), EngineConfig(model="fake"))
    return EngineLoop(engine, channel, os.getppid(), max_waiting=max_waiting).run()


def ends(channel: ScriptedChannel) -> list[tuple[str, str]]:
    events = [e for e in channel.sent if isinstance(e, Tokens) and e.finish_reason is not None]
    return [(e.request_id, e.finish_reason or "") for e in events]


def test_serves_what_comes_and_stops_when_told() -> None:
    channel = ScriptedChannel([generate("a")], [], [generate("b"), Cancel(request_id="a")])
    assert run(channel) == 0
    assert ends(channel) == [("a", "cancel"), ("b", "length")]
    tokens = [e for e in channel.sent if isinstance(e, Tokens) and e.request_id == "b"]
    assert sum(len(e.token_ids) for e in tokens) == 5


def test_waits_in_the_socket_only_while_idle() -> None:
    channel = ScriptedChannel([], [generate("a", max_tokens=3)])
    run(channel)
    first, second, *rest = channel.timeouts
    assert first == 0.0  # the first Stats is due at once
    assert 0.0 < second <= process.HEARTBEAT_S
    assert rest[:2] == [0.0, 0.0]
    assert rest[-1] > 0.0


def test_sends_stats_at_once_and_then_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(process, "monotonic", lambda: now[0])
    channel = ScriptedChannel([generate("a", max_tokens=100)])
    engine = Engine(FakeRunner(), EngineConfig(model="fake"))
    loop = EngineLoop(engine, channel, os.getppid(), max_waiting=512)
    receive = channel.receive

    def one_tenth_later(timeout_s: float) -> list[Command]:
        now[0] += 0.1
        return receive(timeout_s)

    monkeypatch.setattr(channel, "receive", one_tenth_later)
    assert loop.run() == 0
    stats = [e for e in channel.sent if isinstance(e, Stats)]
    # 10 s of work at 0.3 s each (the first tenth at or above BUSY_STATS_S).
    assert 30 <= len(stats) <= 36
    assert stats[1].num_running == 1
    assert stats[-1].num_decode_tokens > 90


def test_answers_adapter_commands() -> None:
    channel = ScriptedChannel(
        [LoadAdapter(command_id="1", adapter="a@1", path="weights")],
        [LoadAdapter(command_id="2", adapter="a@2", path="missing")],
        [UnloadAdapter(command_id="3", adapter="a@1"), UnloadAdapter(command_id="4", adapter="x")],
    )
    run(channel)
    done = [e for e in channel.sent if isinstance(e, CommandDone)]
    assert [e.command_id for e in done] == ["1", "2", "3", "4"]
    assert (done[0].error, done[0].detail) == (None, {"row": 0})
    assert done[1].error == "missing does not exist; check the path"
    assert (done[2].error, done[2].detail) == (None, {"num_sequences": 0})
    assert "'x' is not loaded" in (done[3].error or "")


def test_past_outputs_go_to_the_key_they_were_asked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered: list[Any] = []
    monkeypatch.setattr(
        Engine, "remember", lambda _, *given, **key: remembered.append((given, key))
    )
    run(ScriptedChannel([Remember(tenant="t", adapter="a@1", outputs=[[1, 2]], isolation_key="k")]))
    assert remembered == [(("t", "a@1", [[1, 2]]), {"isolation_key": "k"})]


def test_an_adapter_that_fails_oddly_does_not_end_the_others() -> None:
    class OddRunner(FakeRunner):
        def read_adapter(self, path: str) -> str:
            raise KeyError(path)

    channel = ScriptedChannel(
        [generate("a"), LoadAdapter(command_id="1", adapter="a@1", path="weights")]
    )
    assert run(channel, OddRunner()) == 0
    done = next(e for e in channel.sent if isinstance(e, CommandDone))
    assert done.error == "adapter 'a@1': KeyError: 'weights'"
    assert ends(channel) == [("a", "length")]


def test_a_step_that_throws_answers_every_request_and_exits_with_1(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class BrokenRunner(FakeRunner):
        def run(self, batch: StepBatch) -> StepResult:
            if len(self.batches) == 2:
                raise RuntimeError("out of memory")
            return super().run(batch)

    channel = ScriptedChannel([generate("a"), generate("b")])
    assert run(channel, BrokenRunner()) == 1
    assert sorted(ends(channel)) == [("a", "error"), ("b", "error")]
    assert "out of memory" in caplog.text


def test_ends_when_its_parent_has_changed() -> None:
    class EndlessChannel(ScriptedChannel):
        def receive(self, timeout_s: float) -> list[Command]:
            self.timeouts.append(timeout_s)
            return []

    engine = Engine(FakeRunner(), EngineConfig(model="fake"))
    assert EngineLoop(engine, EndlessChannel(), -1, max_waiting=1).run() == 0
    assert is_orphan(-1)
    assert not is_orphan(os.getppid())


def test_resident_bytes_is_ours() -> None:
    assert 10_000_000 < resident_bytes() < 20_000_000_000


@pytest.mark.parametrize("module", ["client", "process", "text.stream", "text.chat_template"])
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, quickmatch.engine.{module}\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_waits_for_its_adapters_weights_while_others_go_on() -> None:
    """Two places in memory for three adapters: the third request's was given up for another."""
    is_read = threading.Event()

    class SlowDisk(FakeRunner):
        def read_adapter(self, path: str) -> str:
            if len(self.batches) > 3 or path != "a" or not self.loaded:
                return super().read_adapter(path)
            assert is_read.wait(20)
            return path

        def run(self, batch: StepBatch) -> StepResult:
            if len(self.batches) >= 8:
                is_read.set()
                time.sleep(0.005)
            return super().run(batch)

    runner = SlowDisk(max_adapters=2)
    loads = [LoadAdapter(command_id=n, adapter=f"{n}@1", path=n) for n in "abc"]
    late = [msgspec.structs.replace(generate(name), adapter="a@1") for name in ("late", "gone")]
    channel = ScriptedChannel(loads, [generate("base", max_tokens=100), *late])
    channel.turns += [[], [Cancel(request_id="gone")]]
    assert run(channel, runner) == 0
    assert "a@1" in runner.loaded
    assert ends(channel) == [("gone", "cancel"), ("late", "length"), ("base", "length")]
    spans = [len(batch.spans) for batch in runner.batches]
    assert spans[:8] == [1] * 8  # the base's request alone, while the disk is read
    assert max(spans) == 2


def test_a_request_whose_adapter_went_from_the_disk_ends_alone() -> None:
    runner = FakeRunner(max_adapters=1)
    channel = ScriptedChannel(
        [LoadAdapter(command_id=n, adapter=f"{n}@1", path=n) for n in "ab"], [generate("base")]
    )

    def lose(timeout_s: float) -> list[Command]:
        turn = ScriptedChannel.receive(channel, timeout_s)
        if any(isinstance(command, Generate) for command in turn):
            runner.missing.add("a")
            turn.append(msgspec.structs.replace(generate("late"), adapter="a@1"))
        return turn

    channel.receive = lose  # type: ignore[method-assign]
    assert run(channel, runner) == 0
    assert sorted(ends(channel)) == [("base", "length"), ("late", "error")]
    failed = next(e for e in channel.sent if isinstance(e, Tokens) and e.finish_reason == "error")
    assert failed.error == "a does not exist; check the path"


def with_adapter(name: str, adapter: str, **sampling: Any) -> Generate:
    return msgspec.structs.replace(generate(name, **sampling), adapter=f"{adapter}@1")


def test_requests_wait_where_more_adapters_are_in_use_than_memory_holds() -> None:
    """In the order that they came in, each with its own weights; one is given up meanwhile."""
    runner = FakeRunner(max_adapters=1, num_blocks=256)
    names = "abcd"
    loads = [LoadAdapter(command_id=n, adapter=f"{n}@1", path=n) for n in names]
    first = with_adapter("1 a", "a", max_tokens=20)
    later = [with_adapter(f"{i} {n}", n) for i, n in enumerate("bcdb", 2)]
    channel = ScriptedChannel(loads, [], [], [first], later, [], [Cancel(request_id="4 d")])
    assert run(channel, runner) == 0
    assert ends(channel) == [
        ("4 d", "cancel"),
        ("1 a", "length"),
        ("2 b", "length"),
        ("5 b", "length"),
        ("3 c", "length"),
    ]
    assert list(runner.loaded) == ["c@1"]
    for request in (first, later[0], later[1], later[3]):
        told = [e for e in channel.sent if isinstance(e, Tokens)]
        ids = [i for e in told if e.request_id == request.request_id for i in e.token_ids]
        content = (request.adapter or "").removesuffix("@1")
        assert ids == runner.alone([1, 2, 3], request.sampling, content=content)[0]


def test_later_requests_do_not_keep_an_adapter_out_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each new request for `a` comes before the last has ended, so `a` is never unused."""
    monkeypatch.setattr(waiting, "_PATIENCE_S", 0.0)
    runner = FakeRunner(max_adapters=1, num_blocks=256)
    loads = [LoadAdapter(command_id=n, adapter=f"{n}@1", path=n) for n in "ab"]
    channel = ScriptedChannel(loads, [], [], [with_adapter("0 a", "a", max_tokens=20)])
    channel.turns.append([with_adapter("b", "b")])
    num_later = 60
    for i in range(1, num_later + 1):
        channel.turns += [[]] * 9 + [[with_adapter(f"{i} a", "a", max_tokens=20)]]
    assert run(channel, runner) == 0
    order = [name for name, reason in ends(channel) if reason == "length"]
    assert len(order) == num_later + 2
    assert order.index("b") < num_later // 2
    for name, content in (("b", "b"), (f"{num_later} a", "a")):
        told = [e for e in channel.sent if isinstance(e, Tokens) and e.request_id == name]
        request = with_adapter(name, content, max_tokens=20 if content == "a" else 5)
        ids = [i for e in told for i in e.token_ids]
        assert ids == runner.alone([1, 2, 3], request.sampling, content=content)[0]


def test_an_adapter_that_was_to_leave_stays_where_nobody_waits_for_its_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "_PATIENCE_S", 0.0)
    runner = FakeRunner(max_adapters=1, num_blocks=1024, max_model_len=4096)
    loads = [LoadAdapter(command_id=n, adapter=f"{n}@1", path=n) for n in "ab"]
    channel = ScriptedChannel(loads, [], [], [with_adapter("1", "a", max_tokens=3000)])
    channel.turns += [[with_adapter("gone", "b")], *[[]] * 500, [Cancel(request_id="gone")]]
    channel.turns += [[with_adapter("2", "a")]]
    assert run(channel, runner) == 0
    assert ends(channel) == [("gone", "cancel"), ("2", "length"), ("1", "length")]


def test_an_adapter_is_loaded_while_all_that_memory_holds_are_in_use() -> None:
    runner = FakeRunner(max_adapters=1, num_blocks=1024, max_model_len=4096)
    a, b = (LoadAdapter(command_id=n, adapter=f"{n}@1", path=n) for n in "ab")

    def done() -> list[tuple[str, str | None]]:
        return [(e.command_id, e.error) for e in channel.sent if isinstance(e, CommandDone)]

    class PatientChannel(ScriptedChannel):
        def receive(self, timeout_s: float) -> list[Command]:
            is_early = len(self.turns) == 1 and len(done()) < 2
            return [] if is_early else super().receive(timeout_s)

    channel = PatientChannel([a], [], [with_adapter("1", "a", max_tokens=3000)], [b])
    channel.turns.append([with_adapter("2", "b")])
    assert run(channel, runner) == 0
    assert done() == [("a", None), ("b", None)]
    assert ends(channel) == [("1", "length"), ("2", "length")]
    assert list(runner.loaded) == ["b@1"]


def test_no_more_requests_wait_for_adapters_than_a_queue_holds() -> None:
    runner = FakeRunner(max_adapters=1)
    loads = [LoadAdapter(command_id=n, adapter=f"{n}@1", path=n) for n in "ab"]
    later = [with_adapter(str(i), "a", max_tokens=2) for i in range(3)]
    channel = ScriptedChannel(loads, [], [], [with_adapter("b", "b", max_tokens=30)], later)
    assert run(channel, runner, max_waiting=2) == 0
    assert ends(channel) == [("2", "error"), ("b", "length"), ("0", "length"), ("1", "length")]
    (refused,) = (e for e in channel.sent if isinstance(e, Tokens) and e.error)
    assert refused.error_code == "queue_full"
    assert "2 requests wait for adapters" in (refused.error or "")


class SlowGrammars:
    """Compiles nothing, and not before it is told; refuses one expression."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.held: list[Grammar] = []

    def has(self, grammar: Grammar) -> bool:
        return grammar in self.held

    def read(self, grammar: Grammar) -> str:
        assert self.may_end.wait(20)
        if grammar.text == "(":
            raise InvalidRequest("the regex cannot be compiled: unclosed group")
        return grammar.text

    def put(self, grammar: Grammar, _compiled: str) -> None:
        self.held.append(grammar)

    def start(self, grammar: Grammar) -> None:
        assert grammar in self.held


def test_requests_wait_for_their_grammar_while_others_go_on() -> None:
    grammars = SlowGrammars()

    class Runner(FakeRunner):
        def run(self, batch: StepBatch) -> StepResult:
            if len(self.batches) >= 8:
                grammars.may_end.set()
                time.sleep(0.005)
            return super().run(batch)

    runner = Runner()
    runner.grammars = grammars  # type: ignore[attr-defined]
    good, bad = (Grammar("regex", text) for text in ("a+", "("))
    bound = [generate(n, grammar=g, ignore_eos=False) for n, g in (("x", good), ("y", bad))]
    channel = ScriptedChannel([generate("plain", max_tokens=100), *bound])
    assert run(channel, runner) == 0
    assert sorted(end[0] for end in ends(channel)) == ["plain", "x", "y"]
    refused = next(e for e in channel.sent if isinstance(e, Tokens) and e.request_id == "y")
    assert (refused.error_code, refused.finish_reason) == ("invalid_request", "error")
    assert "unclosed group" in (refused.error or "")
    assert [len(batch.spans) for batch in runner.batches[:8]] == [1] * 8
    assert grammars.held == [good]
