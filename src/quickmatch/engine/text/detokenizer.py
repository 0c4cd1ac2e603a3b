"""Token ids to text, one token at a time, without ever showing half a character.

Owns: the few bytes whose character is not complete yet. Two ways, chosen by the vocabulary:

* Byte-level (GPT-2, Llama 3, Qwen): a token is a run of bytes, so an incremental UTF-8 decoder is
  all it takes.
* Others (SentencePiece): a token is text, which depends on the tokens before it (a space kept or
  stripped at the beginning); a short window is decoded with and without the new token, and the
  difference is what it adds. Characters that the vocabulary lacks come as byte tokens, which go
  through a UTF-8 decoder as above.

Either way the work for a token is constant. Invariant: the pieces joined are the text of the
whole; special tokens have none.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from quickmatch.engine.text.tokenizer import Tokenizer

_WINDOW_TOKENS = 4  # enough to know what the next token joins on to


class Detokenizer(Protocol):
    """Of one sequence."""

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now, which may be none."""

    def flush(self) -> str:
        """Return what was held back; an incomplete character shows as U+FFFD."""


def make_detokenizer(tokenizer: Tokenizer, context: Sequence[int] = ()) -> Detokenizer:
    """Return a detokenizer for one new sequence.

    context: the prompt's token ids where the output goes on with the prompt's text, so that a
    first word keeps its space; empty for a chat's answer, which begins anew.
    """
    if tokenizer.is_byte_level:
        return ByteDetokenizer(tokenizer)
    return WindowDetokenizer(tokenizer, context)


class ByteDetokenizer:
    """For byte-level vocabularies."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._special_ids = tokenizer.special_ids
        self._token_bytes = tokenizer.token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now."""
        if token_id in self._special_ids:
            return ""
        return self._decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """Return what was held back."""
        return self._decode(b"", True)


class WindowDetokenizer:
    """For vocabularies in which a token's text depends on the tokens before it."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = [i for i in context if i not in tokenizer.special_ids][-_WINDOW_TOKENS:]
        self._decode_bytes = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now."""
        if token_id in self._tokenizer.special_ids:
            return ""
        byte = self._tokenizer.fallback_bytes.get(token_id)
        if byte is not None:
            self._window = [*self._window[1 - _WINDOW_TOKENS :], token_id]
            return self._decode_bytes(byte)
        before = self._tokenizer.decode(self._window)
        with_token = [*self._window, token_id]
        piece = self._tokenizer.decode(with_token)[len(before) :]
        self._window = with_token[-_WINDOW_TOKENS:]
        return self.flush() + piece

    def flush(self) -> str:
        """Return what was held back: bytes of a character that was never completed."""
        return self._decode_bytes(b"", True)
