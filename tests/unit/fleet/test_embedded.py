"""The embedded backend over a fake engine client: choices, stops, retries, cancellation."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import pytest

from quickmatch.core.call import Call
from quickmatch.core.completion import Delta, FinishReason, Usage
from quickmatch.core.errors import (
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    ModelLoadError,
    Unavailable,
)
from quickmatch.core.sampling import SamplingParams
from quickmatch.core.speculation_settings import engine_names
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.wire import (
    DraftSourceStats,
    Generate,
    Ready,
    SpeculationStats,
    Stats,
    Tokens,
)
from quickmatch.fleet.backend import PastAnswer, Target
from quickmatch.fleet.embedded import EmbeddedBackend
from quickmatch.fleet.embedded_config import ENGINE_SETTINGS, choice_sampling, engine_config
from quickmatch.store.documents import Model, ModelKind
from tests.e2e.tiny_model import make_model

READY = Ready(
    pid=1, max_model_len=32, vocab_size=300, model_bytes=1, kv_bytes=1, num_blocks=1,
    block_size=16, load_s=0.1, device="cpu", dtype="float32",
)  # fmt: skip


class FakeEngine:
    """Every sequence is "abcdef", a token a letter; it can die, before or amid an answer."""

    def __init__(self, on_exit: Callable[[str], None]) -> None:
        self.ready, self.is_alive = READY, True
        self.stats: Stats | None = None
        self.requests: list[Generate] = []
        self.adapters: list[str] = []
        self.drafts: dict[str, tuple[str, str]] = {}
        self.remembered: list[tuple[str, str | None, str, list[list[int]]]] = []
        self.num_cancelled = 0
        self.dies_after: int | None = None  # letters
        self.socket_error: Exception | None = None
        self._on_exit = on_exit

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens, None]:
        self.requests.append(request)
        is_done = False
        try:
            for number, letter in enumerate("abcdef"):
                await asyncio.sleep(0)
                if self.socket_error is not None:
                    raise self.socket_error
                if self.dies_after == number:
                    self.die()
                    raise Unavailable("the engine process ended")
                is_last = letter == "f"
                yield Tokens(
                    request_id=request.request_id,
                    token_ids=[LETTERS[letter]],
                    logprobs=[[(LETTERS[letter], -0.5), (1, -2.0)]],
                    finish_reason="length" if is_last else None,
                    num_cached_tokens=2 if number == 0 else 0,
                    num_accepted_prediction_tokens=int(bool(request.prediction_token_ids)),
                    num_rejected_prediction_tokens=int(request.prediction_token_ids[6:] != []),
                    queue_s=0.25,
                )
            is_done = True
        finally:
            self.num_cancelled += not is_done

    def die(self) -> None:
        self.is_alive = False
        self._on_exit("the engine process ended")

    async def load_adapter(self, adapter: str, path: str) -> None:
        if "broken" in path:
            raise ModelLoadError("broken")
        self.adapters.append(adapter)

    async def unload_adapter(self, adapter: str) -> None:
        self.adapters.remove(adapter)

    async def load_draft(self, draft: str, path: str, adapter: str) -> dict[str, float]:
        self.drafts[adapter] = (draft, path)
        return {"swap_s": 0.001}

    async def unload_draft(self, adapter: str) -> None:
        del self.drafts[adapter]

    def remember(
        self, outputs: list[list[int]], *, tenant: str, adapter: str | None, isolation_key: str
    ) -> None:
        self.remembered.append((tenant, adapter, isolation_key, outputs))

    async def close(self) -> None:
        self.is_alive = False


LETTERS: dict[str, int] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_model(tmp_path_factory.mktemp("model") / "tiny")
    vocab = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    LETTERS.update({letter: vocab[letter] for letter in "abcdef"})
    return path


class Started:
    """A backend and the engines that it started."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        self.engines: list[FakeEngine] = []
        config = EngineConfig(model=str(folder))
        self.backend = EmbeddedBackend(config, run_dir, start_engine=self._start)  # type: ignore[arg-type]

    async def _start(
        self, config: EngineConfig, _: Path, *, on_exit: Callable[[str], None]
    ) -> FakeEngine:
        assert config.model
        self.engines.append(FakeEngine(on_exit))
        return self.engines[-1]

    async def ask(self, call: Call, target: Target | None = None) -> list[Delta | Usage]:
        target = target or Target("tiny@1", None)
        return [item async for item in self.backend.stream(call, target)]


@pytest.fixture
async def started(folder: Path, tmp_path: Path) -> Started:
    made = Started(folder, tmp_path)
    await made.backend.start()
    return made


CALL = Call(id="c", endpoint="completion", model="tiny", prompt="the card")


def text_of(items: list[Delta | Usage], index: int = 0) -> str:
    return "".join(i.text for i in items if isinstance(i, Delta) and i.index == index)


async def test_an_answer_its_usage_and_its_notes(started: Started) -> None:
    target = Target("tiny@1", None)
    *deltas, usage = await started.ask(CALL, target)
    assert text_of(deltas) == "abcdef"
    assert isinstance(deltas[-1], Delta)
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    (request,) = started.engines[0].requests
    assert usage == Usage(len(request.prompt_token_ids), 6, 2)
    assert target.notes.queue_s == 0.25


async def test_chat_goes_through_the_template(started: Started) -> None:
    call = replace(CALL, endpoint="chat", messages=({"role": "user", "content": "a"},))
    await started.ask(call)
    chat = started.engines[0].requests[0].prompt_token_ids
    assert chat[0] == 1  # <|im_start|>, as one token
    assert chat.count(2) == 1


async def test_a_prediction_reaches_every_choice_and_its_counts_come_back(
    started: Started,
) -> None:
    call = replace(CALL, endpoint="chat", messages=({"role": "user", "content": "a"},), n=2)
    call = replace(call, prediction="abcdefg", tenant="acme")
    *_, usage = await started.ask(call)
    requests = started.engines[0].requests
    letters = [LETTERS[letter] for letter in "abcdef"]
    assert [r.prediction_token_ids[:6] for r in requests] == [letters, letters]
    assert {r.tenant for r in requests} == {"acme"}
    assert isinstance(usage, Usage)
    assert (usage.accepted_prediction_tokens, usage.rejected_prediction_tokens) == (12, 12)


async def test_a_prediction_longer_than_the_context_is_cut(started: Started) -> None:
    call = replace(CALL, endpoint="chat", messages=({"role": "user", "content": "a"},))
    await started.ask(replace(call, prediction="abc" * 100))
    assert len(started.engines[0].requests[0].prediction_token_ids) == READY.max_model_len


async def test_n_choices_have_derived_seeds_and_count_the_prompt_once(started: Started) -> None:
    call = replace(CALL, n=3, sampling=SamplingParams(seed=7), isolation_key="k")
    *deltas, usage = await started.ask(call, Target("red@2", "red@2"))
    assert [text_of(deltas, i) for i in range(3)] == ["abcdef"] * 3
    requests = started.engines[0].requests
    seeds = [r.sampling.seed for r in requests]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert {(r.adapter, r.isolation_key) for r in requests} == {("red@2", "k")}
    assert isinstance(usage, Usage)
    assert usage == Usage(len(requests[0].prompt_token_ids), 18, 2)


async def test_a_stop_string_ends_the_choice_and_the_sequence(started: Started) -> None:
    *deltas, usage = await started.ask(replace(CALL, sampling=SamplingParams(stop=("cd",))))
    assert text_of(deltas) == "ab"
    assert isinstance(deltas[-1], Delta)
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert isinstance(usage, Usage)
    assert usage.completion_tokens == 4
    assert started.engines[0].num_cancelled == 1
    assert started.engines[0].requests[0].sampling.stop == ()


async def test_echo_comes_before_every_choice(started: Started) -> None:
    items = await started.ask(replace(CALL, echo=True, n=2))
    assert [text_of(items, i) for i in range(2)] == ["the cardabcdef"] * 2


async def test_leaving_early_cancels_every_choice(started: Started) -> None:
    stream = started.backend.stream(replace(CALL, n=3), Target("tiny@1", None))
    async with aclosing(stream):
        async for _ in stream:
            break
    engine = started.engines[0]
    assert len(engine.requests) >= 1
    assert engine.num_cancelled == len(engine.requests)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (replace(CALL, prompt=""), InvalidRequest, "empty"),
        (replace(CALL, prompt=(5,) * 32), ContextTooLong, "32 tokens .*context of 32"),
        (
            replace(CALL, prompt=(5,) * 30, sampling=SamplingParams(max_tokens=3)),
            ContextTooLong,
            "max_tokens 3 .*lower max_tokens to 2",
        ),
        (replace(CALL, echo=True, sampling=SamplingParams(logprobs=1)), InvalidRequest, "echo"),
    ],
)
async def test_what_cannot_be_served_is_refused(
    started: Started, call: Call, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await started.ask(call)
    assert started.engines[0].requests == []


async def test_an_answer_that_has_not_begun_survives_a_death(started: Started) -> None:
    await started.backend.load_adapter("red@1", "/red/1")
    started.engines[0].dies_after = 0
    target = Target("red@1", "red@1")
    asking = asyncio.create_task(started.ask(CALL, target))
    assert await started.backend.died() == "the engine process ended"
    assert not started.backend.is_ready
    await started.backend.start()
    assert text_of(await asking) == "abcdef"
    assert started.engines[1].adapters == ["red@1"]
    assert target.notes.num_retries == 1


async def test_an_answer_that_has_begun_fails(started: Started) -> None:
    started.engines[0].dies_after = 2
    with pytest.raises(Unavailable):
        await started.ask(CALL)


async def test_a_failing_socket_is_a_dead_engine_not_noticed_yet(started: Started) -> None:
    engine = started.engines[0]
    engine.socket_error = RuntimeError("Resource temporarily unavailable")
    asking = asyncio.create_task(started.ask(CALL))
    await asyncio.sleep(0.02)
    engine.die()
    await started.backend.start()
    assert text_of(await asking) == "abcdef"


async def test_a_call_is_retried_only_once(started: Started) -> None:
    started.engines[0].dies_after = 0
    asking = asyncio.create_task(started.ask(CALL))
    await started.backend.died()
    await started.backend.start()
    started.engines[1].dies_after = 0
    with pytest.raises(Unavailable):
        await asking


async def test_adapters_come_back_after_a_restart_those_unloaded_do_not(started: Started) -> None:
    await started.backend.load_adapter("red@1", "/red/1")
    await started.backend.load_adapter("blue@1", "/blue/1")
    await started.backend.unload_adapter("blue@1")
    with pytest.raises(ModelLoadError):
        await started.backend.load_adapter("bad@1", "/broken")
    started.engines[0].die()
    await started.backend.start()
    assert started.engines[1].adapters == ["red@1"]


async def test_info_tells_what_the_engine_told(started: Started) -> None:
    assert started.backend.info["max_model_len"] == 32
    started.engines[0].stats = Stats(
        num_running=1, num_waiting=0, num_blocks_used=2, num_blocks=9, num_preempted=0,
        num_prefill_tokens=0, num_decode_tokens=0, num_prefix_hit_tokens=0, num_evicted_tokens=0,
        num_steps=0, step_s=0.0, rss_bytes=1,
    )  # fmt: skip
    stats = started.backend.info["stats"]
    assert (stats["num_running"], stats["speculation"]) == (1, None)
    assert "type" not in {**stats, **started.backend.info}
    head = DraftSourceStats(num_proposed=4, num_accepted=3)
    speculation = SpeculationStats(num_verified=2, sources={"head": head}, drafts={"": "h@1"})
    started.engines[0].stats = msgspec.structs.replace(
        started.engines[0].stats, speculation=speculation
    )
    told = started.backend.info["stats"]["speculation"]
    assert told["sources"] == {"head": {"num_proposed": 4, "num_accepted": 3}}
    assert (told["num_verified"], told["drafts"]) == (2, {"": "h@1"})
    assert msgspec.json.encode(started.backend.info)
    await started.backend.close()
    assert not started.backend.is_ready


async def test_heads_and_past_answers_go_to_the_engine(started: Started) -> None:
    notes = await started.backend.load_draft("head@1", "/head/1", "red@1")
    engine = started.engines[0]
    assert (notes, engine.drafts) == ({"swap_s": 0.001}, {"red@1": ("head@1", "/head/1")})
    await started.backend.unload_draft("red@1")
    assert engine.drafts == {}
    assert started.backend.max_remembered_tokens == 1_000_000
    call = replace(CALL, prompt=tuple(range(20, 40)), tenant="acme", isolation_key="k")
    answers = [PastAnswer(call, "abc"), PastAnswer(replace(call, tenant="other"), "f")]
    await started.backend.remember(answers, adapter="red@1")
    end = list(range(32, 40))
    assert engine.remembered == [
        ("acme", "red@1", "k", [[*end, *(LETTERS[letter] for letter in "abc")]]),
        ("other", "red@1", "k", [[*end, LETTERS["f"]]]),
    ]


def test_choices_have_seeds_of_their_own() -> None:
    seeds = {choice_sampling(SamplingParams(seed=s), i).seed for s in range(50) for i in range(8)}
    assert len(seeds) == 400
    assert choice_sampling(SamplingParams(seed=-3), 1).seed is not None
    assert choice_sampling(SamplingParams(), 1).seed is None


def test_every_engine_setting_stands_in_the_docs() -> None:
    page = Path(__file__).parents[3] / "docs" / "api.md"
    section = page.read_text(encoding="utf-8").partition("## Engine settings")[2]
    rows = [row for row in section.partition("\n## ")[0].splitlines() if row.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(ENGINE_SETTINGS)


def test_engine_settings_are_checked() -> None:
    model = Model(id="m", created_at=0.0, model_kind=ModelKind.BASE, path="/m")
    assert engine_config(model, {"max_num_seqs": 4}).max_num_seqs == 4
    with pytest.raises(ConfigError, match="did you mean 'max_num_seqs'"):
        engine_config(model, {"max_num_seq": 4})
    with pytest.raises(ConfigError, match="max_num_seqs"):
        engine_config(model, {"max_num_seqs": "many"})
    with pytest.raises(ConfigError, match="block_size is 0"):
        engine_config(model, {"block_size": 0})


def test_speculation_reaches_the_engine_and_the_loops_part_does_not() -> None:
    model = Model(id="m", created_at=0.0, model_kind=ModelKind.BASE, path="/m")
    settings = {"adapt": True, "max_depth": 3, "drafters": ["suffix", "head"]}
    config = engine_config(model, {}, settings).speculation
    assert (config.max_depth, config.drafters) == (3, ("suffix", "head"))
    assert engine_config(model, {}, {}).speculation == SpeculationConfig()
    assert engine_config(model, {}, {"drafters": "off"}).speculation.drafters == ()
    with pytest.raises(ConfigError, match=r"did you mean speculation\.max_depth"):
        engine_config(model, {}, {"max_dept": 3})
    with pytest.raises(ConfigError, match=r"drafters holds 'oracle'; known: prediction"):
        engine_config(model, {}, {"drafters": "oracle"})
    with pytest.raises(ConfigError, match="unknown engine setting 'speculation'"):
        engine_config(model, {"speculation": {}})


def test_every_setting_of_the_engines_speculation_is_known() -> None:
    assert set(engine_names()) == {f.name for f in fields(SpeculationConfig)}


def test_a_draft_model_is_a_name_or_a_folder() -> None:
    model = Model(id="m", created_at=0.0, model_kind=ModelKind.BASE, path="/m")
    small = Model(id="small", created_at=0.0, model_kind=ModelKind.BASE, path="/small")
    head = Model(id="head", created_at=0.0, model_kind=ModelKind.DRAFT, path="/head/1")
    by_name = engine_config(model, {}, {"draft_model": "small"}, draft_model=small)
    assert by_name.speculation.draft_model == "/small"
    assert engine_config(model, {}, {"draft_model": "/f"}).speculation.draft_model == "/f"
    with pytest.raises(ConfigError, match="of kind draft; name a small base model"):
        engine_config(model, {}, {"draft_model": "head"}, draft_model=head)


async def test_an_engine_that_has_started_ends_where_the_text_side_cannot_be_read(
    tmp_path: Path,
) -> None:
    folder = make_model(tmp_path / "tiny")
    (folder / "tokenizer.json").write_text("{}")
    made = Started(folder, tmp_path)
    with pytest.raises(ModelLoadError, match="tokenizer"):
        await made.backend.start()
    assert [engine.is_alive for engine in made.engines] == [False]
    assert not made.backend.is_ready
