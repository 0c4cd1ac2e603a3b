"""A conversation to the prompt text that a model was trained on: its Jinja chat template.

Owns: rendering, with the dialect that Hugging Face templates are written in (trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, a plain `tojson`, `{% generation %}`), in a sandbox:
a template comes with the weights and is not our code. It does not tokenize.

Messages are OpenAI's. Two of their habits are ironed out first, because text templates do not know
them: content given as a list of text parts becomes one string, and the JSON text of a tool call's
arguments becomes the object that it stands for.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quickmatch.core.call import Message
from quickmatch.core.errors import InvalidRequest, ModelLoadError
from quickmatch.engine.text.tokenizer_config import TokenizerConfig

# What a template may raise when messages do not suit it, beside Jinja's own errors.
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what an assistant says; here it just renders."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body, in a scope of its own."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class ChatTemplate:
    """The compiled templates of one model folder."""

    def __init__(self, config: TokenizerConfig) -> None:
        """Compile. Raises ModelLoadError with the line if a template is not valid Jinja."""
        environment = _environment()
        self._special_tokens = config.special_tokens
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in config.chat_templates.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ModelLoadError(
                    f"chat template {name!r} is not valid, line {error.lineno}: {error.message}"
                ) from error

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ChatTemplate":
        """Load a model folder's templates; there may be none."""
        return cls(TokenizerConfig.from_folder(Path(folder)))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Return the prompt's text, special tokens included.

        variables: what else the template may know, as a call's chat_template_kwargs
        (enable_thinking, …). They may replace anything but the messages and the tools.
        Raises InvalidRequest with the template's words if it refuses the messages.
        """
        template = self._choose(has_tools=bool(tools))
        context = {
            **self._special_tokens,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **variables,
            "messages": [_plain(message) for message in messages],
            "tools": list(tools) or None,
        }
        try:
            return template.render(context)
        except _RENDER_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {reason}", param="messages"
            ) from error

    def _choose(self, *, has_tools: bool) -> jinja2.Template:
        if has_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        raise InvalidRequest(
            "the model has no chat template, so it cannot take messages; use /v1/completions, or "
            "put a chat_template.jinja into the model's folder"
        )


def _plain(message: Message) -> Message:
    """Return the message with text content as a string and tool arguments as objects."""
    plain = dict(message)
    if isinstance(plain.get("content"), list):
        plain["content"] = "\n".join(_part_text(part) for part in plain["content"])
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_plain_tool_call(call) for call in plain["tool_calls"]]
    return plain


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise InvalidRequest(
            f"a message's content has a part of type {kind!r}; this model reads only "
            '{"type": "text", "text": …} parts',
            param="messages",
        )
    text: str = part["text"]
    return text


def _plain_tool_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call  # not JSON: a model wrote it; the template gets the text as it is
    return {**call, "function": {**function, "arguments": arguments}}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt: unlike Jinja's own filter it escapes nothing for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
