"""Speculation behind a real server: answers stay what they are, whatever drafts them.

One deployment goes through a life of it: plain, drafting, heads swapped under load, an engine
killed. Greedy in float32, so every answer is compared with the plain one, letter by letter.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from quickmatch.store.documents import Deployment, DeploymentState, Model, ModelKind
from quickmatch.store.open import open_store
from tests.e2e.conftest import Server, make_home, serving, wait_until
from tests.e2e.tiny_head import make_head

MODELS = ("tiny", "red")
PROMPTS = [f"the card of applicant {number} is good or poor" for number in range(4)]
NO_STORE = {"Cache-Control": "no-store", "x-quickmatch-trace": "1"}
MAX_SWAP_S = 0.05
Answers = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny model and an adapter, speculation off, and two versions of a head beside them."""
    folder = tmp_path_factory.mktemp("speculation")
    home = make_home(folder, ("red",))
    store = open_store(home)
    store.update(Deployment, "tiny", lambda d: setattr(d, "speculation", {"drafters": []}))
    store.close()
    with serving(folder, home, ("red",)) as running:
        for version in (1, 2):
            make_head(folder / "head" / str(version), folder / "tiny", seed=version)
        head = Model(
            id="head",
            created_at=1.0,
            model_kind=ModelKind.DRAFT,
            version=2,
            path=str(folder / "head" / "2"),
            base_model="tiny",
        )
        running.store.insert(head)
        yield running


def change(server: Server, **fields: Any) -> None:
    def apply(document: Deployment) -> None:
        for name, value in fields.items():
            setattr(document, name, value)

    server.store.update(Deployment, "tiny", apply)


def respeculate(server: Server, **settings: Any) -> None:
    """Set the engine's speculation and wait until a new engine serves."""
    old = server.engine_pid()
    change(server, speculation=settings)

    def is_new() -> bool:
        document = server.deployment()
        adapter = document.adapter_status.get("red")
        is_up = document.state == DeploymentState.READY and document.engine_info.get("pid") != old
        return is_up and adapter is not None and adapter.state == "READY"

    wait_until(is_new, "an engine with other settings")


def wait_for_head(server: Server, draft: str, adapter: str = "") -> None:
    def is_live() -> bool:
        status = server.deployment().draft_status.get(adapter)
        if status is None or status.draft != draft:
            return False
        assert status.state != "FAILED", status.error
        return status.state == "READY"

    wait_until(is_live, f"head {draft}")


def metrics(server: Server) -> dict[str, float]:
    prefix = "quickmatch_speculation_"
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith(prefix)]
    return {name.removeprefix(prefix): float(value) for name, value in pairs}


async def ask(client: openai.AsyncOpenAI, model: str, prompt: str, **extra: Any) -> str:
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=64,
        stream=True,
        extra_headers=NO_STORE,
        extra_body={"ignore_eos": True, **extra},
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def ask_all(server: Server) -> Answers:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0
    ) as client:
        keys = [(model, prompt) for model in MODELS for prompt in PROMPTS]
        texts = await asyncio.gather(*(ask(client, *key) for key in keys))
        return dict(zip(keys, texts, strict=True))


@pytest.fixture(scope="module")
def plain(server: Server) -> Answers:
    """Every answer without speculation; then it is turned on."""
    answers = asyncio.run(ask_all(server))
    assert len(set(answers.values())) == len(answers)
    assert metrics(server) == {}
    # Draft always, so that the drafters are at work on a model this small too.
    respeculate(server, is_adaptive=False)
    return answers


async def test_drafts_change_no_answer(server: Server, plain: Answers) -> None:
    for _ in range(2):  # the second time past answers are drafted from
        assert await ask_all(server) == plain
    seen = metrics(server)
    assert seen['accepted_tokens_total{deployment="tiny",drafter="suffix_global"}'] > 0
    assert seen['accepted_length{deployment="tiny"}'] > 1.0


def test_a_prediction_is_taken_and_counted(server: Server, plain: Answers) -> None:
    key = ("red", PROMPTS[0])
    with server.client() as client:
        for text, least, most in ((plain[key], 4, 64), ("something else entirely", 0, 4)):
            answer = client.chat.completions.create(
                model=key[0],
                messages=[{"role": "user", "content": key[1]}],
                temperature=0,
                max_tokens=64,
                n=2,
                prediction={"type": "content", "content": text},
                extra_headers=NO_STORE,
                extra_body={"ignore_eos": True},
            )
            assert [choice.message.content for choice in answer.choices] == [plain[key]] * 2
            assert answer.usage is not None
            details = answer.usage.completion_tokens_details
            assert details is not None
            assert details.accepted_prediction_tokens is not None
            assert 2 * least <= details.accepted_prediction_tokens <= 2 * most


async def test_heads_are_swapped_under_load_and_nobody_notices(
    server: Server, plain: Answers
) -> None:
    loads = [asyncio.create_task(ask_all(server)) for _ in range(3)]
    wanted: list[dict[str, str]] = [
        {"": "head@1"},
        {"": "head@2"},
        {"": "head@2", "red": "head@1"},
        {"": "head@1", "red": "head@2"},
    ]
    for drafts in wanted:
        change(server, drafts=drafts)
        for adapter, draft in drafts.items():
            await asyncio.to_thread(wait_for_head, server, draft, adapter)
    assert await asyncio.gather(*loads) == [plain] * 3
    assert await ask_all(server) == plain
    status = server.deployment().draft_status
    assert {name: s.adapter for name, s in status.items()} == {"": "", "red": "red@1"}
    assert all(s.swap_s is not None and s.swap_s < MAX_SWAP_S for s in status.values())

    def is_told() -> bool:  # the engine reports once a second while idle
        seen = metrics(server)
        drafted = seen['proposed_tokens_total{deployment="tiny",drafter="head"}']
        return seen['head_swaps_total{deployment="tiny"}'] == 5 and drafted > 0

    await asyncio.to_thread(wait_until, is_told, "five swaps and drafts of heads in the metrics")


def test_a_head_that_does_not_fit_is_refused_and_the_old_one_drafts_on(
    server: Server, tmp_path: Path, plain: Answers
) -> None:
    broken = tmp_path / "1"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    server.store.insert(
        Model(
            id="broken", created_at=1.0, model_kind=ModelKind.DRAFT, path=str(broken),
            base_model="tiny",
        )
    )  # fmt: skip
    change(server, drafts={"": "broken@1"})

    def has_failed() -> bool:
        status = server.deployment().draft_status.get("")
        return status is not None and status.state == "FAILED" and bool(status.error)

    wait_until(has_failed, "a refusal of the broken head")
    assert asyncio.run(ask_all(server)) == plain
    change(server, drafts={"": "head@1", "red": "head@2"})
    wait_for_head(server, "head@1")


async def test_a_new_engine_has_its_heads_and_past_answers_again(
    server: Server, plain: Answers
) -> None:
    pid = server.engine_pid()
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: server.engine_pid() != pid, "another engine")
    await asyncio.to_thread(wait_for_head, server, "head@1")
    await asyncio.to_thread(wait_for_head, server, "head@2", "red")
    name = 'index_tokens{deployment="tiny"}'
    wait = wait_until, lambda: metrics(server).get(name, 0) > 64, "recorded answers in the index"
    await asyncio.to_thread(*wait)
    assert await ask_all(server) == plain
