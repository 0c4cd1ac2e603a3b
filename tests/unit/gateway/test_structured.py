"""The ways in which callers ask for an output's form."""

import json
from typing import Any

import pytest

from quickmatch.core.errors import InvalidRequest
from quickmatch.core.grammar import ANY_OBJECT, Grammar
from quickmatch.gateway.auth import Caller
from quickmatch.gateway.convert import parse

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_TEXT = Grammar("json_schema", json.dumps(SCHEMA))


def grammar_of(**fields: Any) -> Grammar | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    (call,) = parse("chat", json.dumps(body).encode(), {}, Caller()).calls
    return call.sampling.grammar


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, ANY_OBJECT),
        ({"type": "json_object", "schema": SCHEMA}, AS_TEXT),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, AS_TEXT),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "x", "description": "y", "strict": True, "schema": SCHEMA},
            },
            AS_TEXT,
        ),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, Grammar("grammar", 'root ::= "a"')),
    ],
)
def test_response_format(response_format: Any, expected: Grammar | None) -> None:
    assert grammar_of(response_format=response_format) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"json": SCHEMA}, AS_TEXT),
        ({"json": json.dumps(SCHEMA)}, AS_TEXT),
        ({"json_object": True}, ANY_OBJECT),
        ({"regex": "a+"}, Grammar("regex", "a+")),
        ({"choice": ["a", "b"]}, Grammar("choice", '["a", "b"]')),
        ({"grammar": "start: /a/"}, Grammar("grammar", "start: /a/")),
    ],
)
def test_structured_outputs(wanted: Any, expected: Grammar) -> None:
    assert grammar_of(structured_outputs=wanted) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "needs json_schema"),
        ({"response_format": {"type": "grammar"}}, "needs grammar"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "scheme": {}}}, "scheme"),
        ({"structured_outputs": {}}, "says 0 things"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "says 2 things"),
        ({"structured_outputs": {"choice": []}}, "choice"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "send one",
        ),
        ({"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_is_unclear_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        grammar_of(**fields)


def test_completions_take_it_too() -> None:
    body = {"model": "m", "prompt": "a", "response_format": {"type": "json_object"}}
    (call,) = parse("completion", json.dumps(body).encode(), {}, Caller()).calls
    assert call.sampling.grammar == ANY_OBJECT
