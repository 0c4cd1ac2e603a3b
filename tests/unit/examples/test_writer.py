"""The scripted writer: always true, never dull, and served like any provider."""

import re

import openai
import pytest
from fastapi.testclient import TestClient

from examples.credit_cards import phrases
from examples.credit_cards.applicants import simulate
from examples.credit_cards.checks import fact_errors, number_errors
from examples.credit_cards.fields import FIELDS
from examples.credit_cards.prompts import Message, messages_for, read_case
from examples.credit_cards.rating import RatedApplicant, RatingModel
from examples.credit_cards.writer import DESCRIPTION, NAME, write
from examples.credit_cards.writer_server import create_app


@pytest.fixture(scope="module")
def applicants() -> list[RatedApplicant]:
    model = RatingModel(simulate(300, seed=1), seed=1)
    return model.rate(simulate(400, seed=2).values)


@pytest.fixture(scope="module")
def prompts(applicants: list[RatedApplicant]) -> list[list[Message]]:
    return [messages_for(applicant) for applicant in applicants]


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def test_is_true_for_thousands_of_applicants(prompts: list[list[Message]]) -> None:
    for prompt in prompts:
        for seed in (0, 1):
            answer, case = write(prompt, seed), read_case(prompt)
            assert not fact_errors(case, answer) + number_errors(case, answer), answer


def test_is_of_the_right_length(prompts: list[list[Message]]) -> None:
    answers = [write(prompt) for prompt in prompts]
    assert {len(sentences(answer)) for answer in answers} == {4, 5, 6}
    assert max(len(answer) for answer in answers) < 480  # about 120 tokens


def test_reads_well(prompts: list[list[Message]]) -> None:
    for prompt in prompts:
        answer = write(prompt)
        assert not re.search(r",[.,]|\.\.|  |[{}]", answer), answer
        assert all(s[0].isupper() and s.endswith(".") for s in sentences(answer)), answer


def test_varies_in_openings_turns_and_advice(prompts: list[list[Message]]) -> None:
    parts = [sentences(write(prompt)) for prompt in prompts]
    shapes = [[re.sub(r"\$?\d[\d,]*%?", "N", s) for s in answer] for answer in parts]
    assert len({tuple(shape[:2]) for shape in shapes}) > 600
    assert len({shape[1] for shape in shapes} | {shape[2] for shape in shapes}) > 400
    assert len({tuple(shape) for shape in shapes}) > 0.95 * len(shapes)


def test_is_the_same_for_the_same_seed_only(prompts: list[list[Message]]) -> None:
    assert [write(p) for p in prompts[:50]] == [write(p) for p in prompts[:50]]
    assert sum(write(p, 0) != write(p, 1) for p in prompts[:50]) > 45


def test_reads_only_the_messages(prompts: list[list[Message]]) -> None:
    changed = [dict(message) for message in prompts[0]]
    user = changed[1]["content"]
    factor = read_case(changed).factors[0]
    changed[1]["content"] = user.replace(f": {factor.figure}", f": {factor.field.figure(1)}")
    assert re.search(rf"{factor.field.label}\D+1\b", write(changed))


def test_phrases_cover_every_field_and_hide_no_rating() -> None:
    keys = {field.key for field in FIELDS}
    assert set(phrases.MENDS) == set(phrases.KEEPS) == keys
    said = " ".join(
        text
        for group in (phrases.MENDS, phrases.KEEPS, phrases.GREETINGS, phrases.LEAD, phrases.PAIR)
        for texts in group.values()
        for text in texts
    )
    assert not re.search(r"\b(good|normal|poor)\b|\d", said)


def test_server_answers_as_a_provider_does(prompts: list[list[Message]]) -> None:
    with TestClient(create_app(), base_url="http://writer") as http:
        client = openai.OpenAI(base_url="http://writer/v1", api_key="none", http_client=http)
        card = client.models.list().data[0]
        assert (card.id, card.owned_by) == (NAME, DESCRIPTION)
        whole = client.chat.completions.create(model=NAME, messages=prompts[0])
        assert whole.choices[0].message.content == write(prompts[0])
        assert whole.usage is not None
        assert whole.usage.completion_tokens == len(write(prompts[0]).split())
        chunks = list(
            client.chat.completions.create(
                model=NAME,
                messages=prompts[0],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == write(prompts[0])
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage == whole.usage


def test_server_refuses_what_it_cannot_explain(prompts: list[list[Message]]) -> None:
    with TestClient(create_app(), base_url="http://writer") as http:
        client = openai.OpenAI(base_url="http://writer/v1", api_key="none", http_client=http)
        with pytest.raises(openai.BadRequestError, match="the line 'Rating: …' says ''"):
            client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "Hello"}]
            )
        with pytest.raises(openai.NotFoundError, match="there is only 'scripted-writer'"):
            client.chat.completions.create(model="gpt", messages=prompts[0])
