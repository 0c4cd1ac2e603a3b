"""What a request says of its output's form, in any of the ways that callers know.

OpenAI: `response_format` with type json_object or json_schema. Fireworks: json_object with a
`schema`, and type grammar. vLLM: `structured_outputs` with json, json_object, regex, choice or
grammar. All become one Grammar; whether it can be compiled is the engine's side to say.
"""

import json

from quickmatch.core.errors import InvalidRequest
from quickmatch.core.grammar import ANY_OBJECT, Grammar
from quickmatch.gateway.schema import CommonBody, ResponseFormatBody, StructuredOutputsBody


def grammar_of(body: CommonBody) -> Grammar | None:
    """Return what the output must match; None: anything. Raises InvalidRequest."""
    found = _of_response_format(body.response_format)
    other = _of_structured_outputs(body.structured_outputs)
    if found is not None and other is not None:
        raise InvalidRequest(
            "response_format and structured_outputs both say what the output must be; send one",
            param="structured_outputs",
        )
    return found or other


def _of_response_format(wanted: ResponseFormatBody | None) -> Grammar | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar("json_schema", wanted.schema_) if wanted.schema_ else ANY_OBJECT
    if wanted.type == "grammar":
        if not wanted.grammar:
            raise _incomplete("grammar", "grammar: a Lark or GBNF grammar")
        return Grammar("grammar", wanted.grammar)
    schema = wanted.json_schema.schema_ if wanted.json_schema else wanted.schema_
    if not schema:
        raise _incomplete("json_schema", "json_schema: {'name': …, 'schema': {…}}")
    return Grammar("json_schema", schema)


def _incomplete(kind: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"response_format of type {kind} needs {what}", param="response_format")


def _of_structured_outputs(wanted: StructuredOutputsBody | None) -> Grammar | None:
    if wanted is None:
        return None
    found: list[Grammar] = []
    if wanted.json_ is not None:
        found.append(Grammar("json_schema", wanted.json_))
    if wanted.json_object:
        found.append(ANY_OBJECT)
    if wanted.regex is not None:
        found.append(Grammar("regex", wanted.regex))
    if wanted.choice is not None:
        found.append(Grammar("choice", json.dumps(wanted.choice)))
    if wanted.grammar is not None:
        found.append(Grammar("grammar", wanted.grammar))
    if len(found) != 1:
        raise InvalidRequest(
            f"structured_outputs says {len(found)} things; send one of json, json_object, regex, "
            "choice, grammar",
            param="structured_outputs",
        )
    return found[0]
