"""What a recorded call asked, and its answers as the suffix index keeps them."""

from pathlib import Path
from typing import Any

import pytest

from quickmatch.core.call import Call
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.fleet.backend import PastAnswer
from quickmatch.fleet.embedded_text import ModelText
from quickmatch.fleet.past_answers import past_answers
from quickmatch.store.documents import Trace
from tests.e2e.tiny_model import make_model

QUESTION = "is the quick brown card good or poor? " * 40


def trace(request: dict[str, Any], choices: list[dict[str, Any]], endpoint: str = "chat") -> Trace:
    return Trace(
        id="t", created_at=1.0, trace_id="t", tenant="acme", endpoint=endpoint,
        model="tiny", model_version="tiny@1", deployment="tiny", request=request,
        response={"choices": choices},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def test_a_chat_is_asked_again_as_it_was() -> None:
    messages = [{"role": "user", "content": "hi", "name": None}]
    request = {
        "messages": messages, "tools": [{"type": "function"}], "n": 2,
        "chat_template_kwargs": {"thinks": False}, "prompt_cache_isolation_key": "mine",
    }  # fmt: skip
    choices = [{"message": {"content": text}} for text in ("one", None, "two")]
    first, second = past_answers(trace(request, choices))
    assert (first.text, second.text, first.call) == ("one", "two", second.call)
    call = first.call
    assert (call.tenant, call.isolation_key) == ("acme", "mine")
    assert call.messages == ({"role": "user", "content": "hi"},)
    assert (call.tools, call.chat_template_kwargs) == (({"type": "function"},), {"thinks": False})
    assert past_answers(trace({**request, "tool_choice": "none"}, choices))[0].call.tools == ()


def test_each_choice_of_a_completion_has_its_own_prompt() -> None:
    request = {"prompt": [[1, 2], [3]], "n": 2, "echo": True}
    found = past_answers(trace(request, [{"text": t} for t in "abcd"], endpoint="completion"))
    assert [(a.call.prompt, a.text) for a in found] == [
        ((1, 2), "a"), ((1, 2), "b"), ((3,), "c"), ((3,), "d"),
    ]  # fmt: skip
    assert all(answer.call.echo for answer in found)
    for prompt, expected in (("text", "text"), ([7, 8], (7, 8)), (["x"], "x")):
        (one,) = past_answers(trace({"prompt": prompt}, [{"text": "a"}], endpoint="completion"))
        assert one.call.prompt == expected


def test_an_answer_stands_behind_the_end_of_its_prompt(folder: Path, tokenizer: Tokenizer) -> None:
    # Guards: first tokens of an answer that are never drafted, since nothing leads to them.
    text = ModelText.from_folder(folder)
    chat = Call(
        id="c", endpoint="chat", model="m", messages=({"role": "user", "content": QUESTION},)
    )
    rendered = ChatTemplate.from_folder(folder).render(chat.messages)
    whole = tokenizer.encode(rendered, add_special_tokens=False)
    answer = tokenizer.encode("the fox", add_special_tokens=False)
    plain = Call(id="c", endpoint="completion", model="m", prompt=QUESTION, echo=True)
    prompt = tokenizer.encode(QUESTION)
    ids = Call(id="c", endpoint="completion", model="m", prompt=tuple(prompt), echo=True)
    kept = text.encode_answers(
        [
            PastAnswer(chat, "the fox"),
            PastAnswer(plain, f"{QUESTION}the fox"),
            PastAnswer(ids, f"{QUESTION}the fox"),
        ]
    )
    assert kept[0] == [*whole[-8:], *answer]
    assert kept[1] == kept[2] == [*prompt[-8:], *answer]


def test_a_prompt_that_the_template_refuses_now_leaves_the_answer(
    folder: Path, tokenizer: Tokenizer
) -> None:
    odd = Call(id="c", endpoint="chat", model="m", messages=({"role": "user", "content": [1]},))
    kept = ModelText.from_folder(folder).encode_answers([PastAnswer(odd, "the fox")])
    assert kept == [tokenizer.encode("the fox", add_special_tokens=False)]
