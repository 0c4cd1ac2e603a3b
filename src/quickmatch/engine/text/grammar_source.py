"""A call's grammar in the compiler's own form (llguidance), and whether it can be compiled at all.

Needs neither torch nor a tokenizer, so that the gateway's process can refuse a wrong one at once.
"""

from llguidance import LLMatcher, grammar_from

from quickmatch.core.errors import InvalidRequest
from quickmatch.core.grammar import Grammar

# JSON allows any number of blanks between two tokens, and a model that is lost writes them for
# ever. What an indented answer has: one of them, or a new line and its indent.
_BLANKS = r"\x20|\r?\n[\x20\t]{0,32}"


def check_grammar(grammar: Grammar) -> None:
    """Raise InvalidRequest, with the compiler's words, for what cannot be compiled."""
    error = LLMatcher.validate_grammar(source_of(grammar))
    if error:
        raise refused(grammar, error)


def source_of(grammar: Grammar) -> str:
    """Return a grammar in llguidance's own form. Raises InvalidRequest."""
    try:
        if grammar.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(
                grammar.text, defaults={"whitespace_pattern": _BLANKS}
            )
        return grammar_from(grammar.kind, grammar.text)
    except ValueError as error:
        raise refused(grammar, str(error)) from error


def refused(grammar: Grammar, reason: str) -> InvalidRequest:
    """Return the error that tells a caller why."""
    what = "JSON schema" if grammar.kind == "json_schema" else grammar.kind
    return InvalidRequest(
        f"the {what} cannot be compiled: {reason.strip()}", param="response_format"
    )
