"""Request bodies of the OpenAI endpoints, as pydantic models: what a caller may send.

Owns names, types and shapes; ranges of sampling values belong to SamplingParams. OpenAI's fields
are all known here. Those that only hint (service_tier, prompt_cache_key, verbosity, …) are taken
and change nothing; those that would change the answer and are not built are refused. A field that
nobody knows is refused with the nearest name: a misspelt `temprature` must not be a silent
default.
"""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

Json = dict[str, Any]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text_of_schema(value: Any) -> Any:
    """Return a JSON schema as text: it comes as an object, or as such a text already."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


SchemaText = Annotated[str | None, BeforeValidator(_text_of_schema)]
Stop = Annotated[list[str] | None, BeforeValidator(_listed)]


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis: not made here


class MessageBody(BaseModel):
    """One chat message. Other keys reach the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: str | list[Json] | None = None


def _text_of_parts(value: Any) -> Any:
    """Return a prediction's content as one text: it comes as a text or as a list of text parts."""
    if not isinstance(value, list):
        return value
    texts = [p.get("text") for p in value if isinstance(p, dict) and p.get("type") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) != len(value):
        raise ValueError("must be a text or a list of {'type': 'text', 'text': …}")
    return "".join(known)


class PredictionBody(BaseModel):
    """What the caller expects the answer to be, say the file that is to be edited."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["content"]
    content: Annotated[str, BeforeValidator(_text_of_parts)]


class JsonSchemaBody(BaseModel):
    """OpenAI's wrapping of a schema. `strict` is how it is always kept."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str | None = None
    description: str | None = None
    schema_: SchemaText = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormatBody(BaseModel):
    """OpenAI's, with Fireworks' `schema` beside json_object, and its grammars."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema", "grammar"]
    json_schema: JsonSchemaBody | None = None
    schema_: SchemaText = Field(None, alias="schema")
    grammar: str | None = None  # Lark or GBNF


class StructuredOutputsBody(BaseModel):
    """vLLM's: one of these says what the output must match."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    json_: SchemaText = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None


class CommonBody(BaseModel):
    """Fields of both endpoints."""

    model_config = ConfigDict(extra="forbid")
    refused: ClassVar[dict[str, str]] = {}  # field -> what to do instead

    model: str = Field(min_length=1)
    n: int | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: Stop = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    response_format: ResponseFormatBody | None = None
    # ---- beyond OpenAI's, as vLLM's and Fireworks' users know them.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputsBody | None = None
    prompt_cache_isolation_key: str | None = None
    cache_nondeterministic: bool = False  # let the exact cache keep a sampled answer too
    # ---- about the record of the call, not the call.
    metadata: dict[str, str] | None = None  # becomes the trace's tags
    store: bool | None = None  # true: record this call as a trace


class ChatBody(CommonBody):
    """POST /v1/chat/completions."""

    refused: ClassVar[dict[str, str]] = {
        "functions": "send `tools`",
        "function_call": "send `tools` and `tool_choice`",
        "audio": "only text is served",
        "web_search_options": "there is no web search; put what was found into a message",
        "moderation": "there is no moderation yet",
    }

    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Json | None = None
    modalities: list[str] | None = None
    prediction: PredictionBody | None = None
    # ---- hints: taken, without an effect here.
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Json | None = None
    # ---- refused, see above.
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None
    moderation: Any = None


class CompletionBody(CommonBody):
    """POST /v1/completions."""

    refused: ClassVar[dict[str, str]] = {"suffix": "send the whole text as the prompt"}

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: Any = None


Endpoint = Literal["chat", "completion"]
