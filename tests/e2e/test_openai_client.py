"""The official OpenAI client and LangChain work by changing the base URL."""

import re
from typing import Literal

import openai
import pydantic
import pytest
from langchain_openai import ChatOpenAI

from tests.e2e.conftest import Server

ASK = [{"role": "user", "content": "the quick fox"}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def ask(client: openai.OpenAI, content: str = "the quick fox", **fields: object) -> str:
    answer = client.chat.completions.create(
        **{
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 12,
            "extra_headers": {"Cache-Control": "no-store"},
            **fields,
        }  # type: ignore[call-overload]
    )
    return str(answer.choices[0].message.content)


def test_greedy_answer_repeats_and_has_usage(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model="tiny",
            messages=ASK,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=12,
            extra_headers={"Cache-Control": "no-store"},
            extra_body={"ignore_eos": True},
        )
        for _ in range(2)
    ]
    first, second = (answer.choices[0] for answer in answers)
    assert first.message.content == second.message.content
    assert first.finish_reason == "length"
    usage = answers[0].usage
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12


def test_stream_gives_the_same_text_and_the_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=ASK,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"Cache-Control": "no-store"},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ask(client)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


async def test_async_client(server: Server) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="any", max_retries=0
    ) as client:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=ASK,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=12,
            stream=True,
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    with server.client() as sync_client:
        assert "".join(parts) == ask(sync_client)


def test_n_choices_with_a_seed(client: openai.OpenAI) -> None:
    def choices() -> list[str | None]:
        answer = client.chat.completions.create(
            model="tiny",
            messages=ASK,  # type: ignore[arg-type]
            n=3,
            seed=5,
            max_tokens=12,
            extra_headers={"Cache-Control": "no-store"},
        )
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    first = choices()
    assert first == choices()
    assert len(set(first)) == 3
    assert first[0] == ask(client, temperature=1, seed=5)


def test_logprobs_chat_and_completion(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny",
        messages=ASK,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    for entry in logprobs.content:
        assert entry.logprob == max(t.logprob for t in entry.top_logprobs) <= 0
        assert len(entry.top_logprobs) == 3
    completion = client.completions.create(
        model="tiny", prompt="the quick", temperature=0, max_tokens=4, logprobs=2
    )
    found = completion.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert len(found.tokens) == len(found.token_logprobs or ()) == 4


def test_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = ask(client, max_tokens=24, extra_body={"ignore_eos": True})
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    short = ask(client, max_tokens=24, stop=stop, extra_body={"ignore_eos": True})
    assert short == whole[: whole.index(stop)]


def test_completion_prompts_text_and_tokens(client: openai.OpenAI) -> None:
    def texts(prompt: object) -> list[str]:
        answer = client.completions.create(
            model="tiny",
            prompt=prompt,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=6,
        )
        return [choice.text for choice in answer.choices]

    fox, dog = texts("the quick fox"), texts("the lazy dog")
    assert texts(["the quick fox", "the lazy dog"]) == fox + dog
    assert texts([40, 41, 42]) == texts([[40, 41, 42]])
    echoed = client.completions.create(
        model="tiny", prompt="the quick fox", temperature=0, max_tokens=6, echo=True
    )
    assert echoed.choices[0].text == "the quick fox" + fox[0]


def test_adapters_answer_differently_and_by_either_name(client: openai.OpenAI) -> None:
    answers = {name: ask(client, model=name) for name in ("tiny", "red", "green", "blue")}
    assert len(set(answers.values())) == 4
    assert ask(client, model="red#tiny") == answers["red"]
    listed = {model.id for model in client.models.list()}
    assert listed == {"tiny", "red", "green", "blue"}
    assert client.models.retrieve("red").id == "red"


def test_second_call_is_served_from_the_cache(client: openai.OpenAI) -> None:
    def call() -> tuple[str, openai.types.CompletionUsage | None, str | None]:
        raw = client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=[{"role": "user", "content": "cache me"}],
            temperature=0,
            max_tokens=8,
        )
        answer = raw.parse()
        return (
            raw.headers["x-quickmatch-cache"],
            answer.usage,
            answer.choices[0].message.content,
        )

    first, second = call(), call()
    assert (first[0], second[0]) == ("miss", "hit")
    assert first[1:] == second[1:]


def test_langchain_invoke_and_stream(server: Server) -> None:
    model = ChatOpenAI(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key="any",  # type: ignore[arg-type]
        temperature=0,
        max_tokens=12,  # type: ignore[call-arg]
        max_retries=0,
    )
    answer = model.invoke("the quick fox")
    assert answer.content == ask(server.client())
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    streamed = "".join(str(chunk.content) for chunk in model.stream("the quick fox"))
    assert streamed == answer.content


class Card(pydantic.BaseModel):
    """What the model has to fill in."""

    kind: Literal["good", "poor"]
    age: int = pydantic.Field(ge=0, le=999)
    is_new: bool


def test_a_pydantic_model_is_filled_in_by_random_weights(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="tiny",
        messages=ASK,  # type: ignore[arg-type]
        max_tokens=200,
        seed=1,
        response_format=Card,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Card)


def test_structured_outputs_as_vllm_has_them(client: openai.OpenAI) -> None:
    def text(**wanted: object) -> str:
        return ask(client, max_tokens=60, extra_body={"structured_outputs": wanted})

    assert text(choice=["a fox", "a dog"]) in ("a fox", "a dog")
    assert re.fullmatch("[0-9]{3}-[a-z]{2}", text(regex="[0-9]{3}-[a-z]{2}"))
    assert text(grammar='root ::= "x" ("y" | "z")') in ("xy", "xz")
