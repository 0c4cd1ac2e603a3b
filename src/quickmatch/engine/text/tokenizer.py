"""Text to token ids and back, as the model's folder defines it.

Owns: loading `tokenizer.json` with the `tokenizers` library (no torch, no transformers), special
tokens, and the bytes that a token of a byte-level vocabulary stands for. It does not stream:
`detokenizer.py` does. What is put around a text (a BOS) is the tokenizer's own post-processor's
affair, as in transformers 5; chat text brings its special tokens along and is encoded bare.

A folder that has no `tokenizer.json` is converted once by transformers, loaded only then.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from quickmatch.core.errors import InvalidRequest, ModelLoadError
from quickmatch.engine.text.tokenizer_config import TokenizerConfig

_METASPACE = "▁"  # how SentencePiece vocabularies write a space


class Tokenizer:
    """A loaded tokenizer. Safe to share between requests."""

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        self.config = config
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, config)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.is_byte_level = _has_decoder(backend, "ByteLevel")

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Load a model folder's tokenizer. Raises ModelLoadError with what is missing."""
        folder = Path(folder)
        config = TokenizerConfig.from_folder(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            return cls(_convert(folder), config)
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), config)
        except Exception as error:  # the library raises nothing narrower
            raise ModelLoadError(f"{path} cannot be read: {error}; copy the file again") from error

    def as_json(self) -> str:
        """Return what `tokenizer.json` would hold, added tokens included."""
        return str(self._backend.to_str())

    @property
    def eos_token(self) -> str | None:
        """The text of the end-of-sequence token, if the folder names one."""
        return self.config.special_tokens.get("eos_token")

    @property
    def bos_token(self) -> str | None:
        """The text of the beginning-of-sequence token, if the folder names one."""
        return self.config.special_tokens.get("bos_token")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's may be larger for padding."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """Return the id of a token's text, None if it is not one token."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return token ids. Special tokens written out in `text` are read as such.

        add_special_tokens: let the tokenizer put its own around it (a BOS); off for chat text.
        Raises InvalidRequest if `text` is not Unicode (half of a surrogate pair).
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(
                "the text holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no "
                "character; remove or complete it"
            ) from error
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of a whole sequence of ids. Ids beyond the vocabulary are skipped."""
        known = [i for i in token_ids if self._backend.id_to_token(i) is not None]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Return one token's own text, for people: half characters show as U+FFFD."""
        if self.is_byte_level:
            return self.token_bytes(token_id).decode("utf-8", "replace")
        if token_id in self.fallback_bytes:
            return self.fallback_bytes[token_id].decode("utf-8", "replace")
        return str(self._backend.id_to_token(token_id) or "").replace(_METASPACE, " ")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token of a byte-level vocabulary stands for."""
        token = self._backend.id_to_token(token_id) or ""
        try:
            return bytes([self._byte_of_char[char] for char in token])
        except KeyError:  # an added token, written as it is
            return str(token).encode()

    @cached_property
    def fallback_bytes(self) -> dict[int, bytes]:
        """The tokens that stand for one byte each, where the vocabulary falls back on such."""
        if not _has_decoder(self._backend, "ByteFallback"):
            return {}
        ids = {self._backend.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        return {i: bytes([byte]) for i, byte in ids.items() if i is not None}

    @cached_property
    def _byte_of_char(self) -> dict[str, int]:
        """How byte-level BPE writes the 256 bytes as printable characters (GPT-2's table)."""
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        table = {chr(byte): byte for byte in printable}
        return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _add_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Add what the configuration names and the tokenizer does not have, as transformers does."""
    known = backend.get_added_tokens_decoder()
    for token in config.added_tokens:
        if token.id not in known:
            backend.add_tokens(
                [
                    tokenizers.AddedToken(
                        token.content,
                        special=token.special,
                        lstrip=token.lstrip,
                        rstrip=token.rstrip,
                        normalized=token.normalized,
                        single_word=token.single_word,
                    )
                ]
            )
    special = {token.content for token in known.values() if token.special}
    for content in config.special_tokens.values():
        if content not in special and backend.token_to_id(content) is not None:
            backend.add_special_tokens([content])


def _has_decoder(backend: tokenizers.Tokenizer, kind: str) -> bool:
    """Whether the decoder is of that kind, or a sequence that holds one."""
    if backend.decoder is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__())
    return kind in {decoder["type"], *(part["type"] for part in decoder.get("decoders", []))}


def _convert(folder: Path) -> tokenizers.Tokenizer:
    """Have transformers make a fast tokenizer of the folder's older files."""
    if not any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        raise ModelLoadError(
            f"{folder} has no tokenizer.json, tokenizer.model or vocab.json; "
            "copy the tokenizer's files beside the weights"
        )
    from transformers import AutoTokenizer

    try:
        backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
    except (ImportError, OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelLoadError(
            f"{folder} has no tokenizer.json, and its older tokenizer files cannot be converted: "
            f"{reason}; run `pip install sentencepiece protobuf`, or save a tokenizer.json there"
        ) from error
    return backend
