"""What an output must match: a JSON schema, a regular expression, one of some texts, a grammar.

Owns the request's side alone, small enough to travel with every call; the engine compiles it
(engine/grammar.py).
"""

from dataclasses import dataclass
from typing import Literal

from quickmatch.core.errors import InvalidRequest

MAX_GRAMMAR_BYTES = 256 << 10

GrammarKind = Literal["json_schema", "regex", "choice", "grammar"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Raises InvalidRequest for a text that is too long."""

    kind: GrammarKind
    text: str  # the schema as JSON; the expression; the choices as a JSON list; Lark or GBNF

    def __post_init__(self) -> None:
        num_bytes = len(self.text.encode("utf-8", "surrogatepass"))
        if num_bytes > MAX_GRAMMAR_BYTES:
            raise InvalidRequest(
                f"the {self.kind} has {num_bytes} bytes; at most {MAX_GRAMMAR_BYTES}",
                param="response_format",
            )


ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')
