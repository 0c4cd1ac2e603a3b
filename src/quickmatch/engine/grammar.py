"""Structured output: which tokens a grammar lets a sequence go on with.

Owns compiled grammars and, for each sequence that has one, how far its output has got in it. The
sampler asks for the tokens that may follow (`allowed`), so a draft's token that the grammar does
not know is never chosen; the speculator has drafts cut to what can be chosen at all (`cut`), and
drafts what the grammar leaves no choice about (`forced`). All look at output and path only, so an
output is the same with and without drafts.

Compiling and matching are llguidance's. Its matcher never raises: what goes wrong is kept in it,
and told by `error`.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from quickmatch.core.errors import InvalidRequest
from quickmatch.core.grammar import Grammar
from quickmatch.engine.speculation.tree import DraftTree
from quickmatch.engine.text.grammar_source import refused, source_of
from quickmatch.engine.text.tokenizer import Tokenizer

_RECENT_TOKENS = 8  # in front of forced text, by which it is cut into tokens
MAX_COMPILED = 128  # grammars that are kept; the one used longest ago is compiled again


class Grammars:
    """One model's compiled grammars. `read` may be called in another thread."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """vocab_size: width of the logits."""
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None  # made for the first grammar, not at the start
        self._making = threading.Lock()
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def has(self, grammar: Grammar) -> bool:
        """Whether it is compiled already."""
        return grammar in self._compiled

    def read(self, grammar: Grammar) -> LLMatcher:
        """Compile a grammar, changing nothing that `start` sees. Raises InvalidRequest."""
        matcher = LLMatcher(self._own_tokenizer(), source_of(grammar), log_level=0)
        if matcher.is_error():
            raise refused(grammar, matcher.get_error())
        return matcher

    def put(self, grammar: Grammar, matcher: LLMatcher) -> None:
        """Keep what was read."""
        self._compiled[grammar] = matcher
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)

    def start(self, grammar: Grammar) -> "GrammarState":
        """Return a grammar's state for a new sequence; compiles it if need be."""
        if grammar not in self._compiled:
            self.put(grammar, self.read(grammar))
        self._compiled.move_to_end(grammar)
        matcher = self._compiled[grammar].deep_copy()
        return GrammarState(matcher, self._own_tokenizer(), self._eos_token_ids)

    def _own_tokenizer(self) -> LLTokenizer:
        with self._making:
            if self._tokenizer is None:
                if not self._eos_token_ids:
                    raise InvalidRequest(
                        f"{self._folder} names no end-of-sequence token, which structured output "
                        "needs; set eos_token_id in its generation_config.json",
                        param="response_format",
                    )
                self._tokenizer = LLTokenizer(
                    Tokenizer.from_folder(self._folder).as_json(),
                    n_vocab=self._vocab_size,
                    eos_token=self._eos_token_ids,
                )
            return self._tokenizer


class GrammarState:
    """How far one sequence's output has got. Output is only ever appended to."""

    def __init__(
        self, matcher: LLMatcher, tokenizer: LLTokenizer, eos_token_ids: Sequence[int]
    ) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._has_ended = False  # an accepted draft held the end, which the matcher is not told
        self._num_matched = 0  # tokens

    @property
    def error(self) -> str | None:
        """Why the matcher gave up, if it did: a grammar may ask too much of it on the way."""
        if not self._matcher.is_error():
            return None
        return str(self._matcher.get_error()).split("\n", 1)[0]

    def allowed(self, output: Sequence[int], path: Sequence[int]) -> bytes:
        """Return which tokens may come next: a bit each, a byte's lowest first; some bytes more.

        path: chosen tokens behind the output, which will be part of it.
        """
        self._follow(output, path)
        return self._only_the_end() if self._has_ended else self._matcher.compute_bitmask()

    def cut(self, output: Sequence[int], tree: DraftTree) -> DraftTree:
        """Return the part of a draft that the grammar allows."""
        self._follow(output)
        inner = set(tree.parents)
        kept: set[int] = set()
        for leaf in range(len(tree)):
            if leaf not in inner:
                path = tree.path(leaf)
                num_valid = self._matcher.validate_tokens([tree.token_ids[i] for i in path])
                kept.update(path[:num_valid])
        return tree if len(kept) == len(tree) else tree.keep(sorted(kept))

    def forced(self, output: Sequence[int]) -> list[int]:
        """Return how the tokenizer would write the text that has to come next, if any has to.

        The model may write it in other tokens. The end of the text is left out where the tokens
        hang on what comes behind it.
        """
        self._follow(output)
        text = self._matcher.compute_ff_bytes()
        if not text:
            return []
        recent = list(output[-_RECENT_TOKENS:])
        token_ids, _ = self._tokenizer.tokenize_partial(text, recent_tokens=recent)
        return list(token_ids)

    def _follow(self, output: Sequence[int], path: Sequence[int] = ()) -> None:
        behind = self._num_matched - len(output)
        new = [*output[self._num_matched :], *path[max(0, behind) :]]
        end = next((i for i, one in enumerate(new) if one in self._eos_token_ids), None)
        if end is not None:
            # A finished matcher takes nothing more, its end neither: that would be an error.
            new, self._has_ended = new[:end], True
        if new:
            self._matcher.consume_tokens(new)
            self._num_matched += len(new)

    def _only_the_end(self) -> bytes:
        mask = bytearray(len(self._matcher.compute_bitmask()))
        for token_id in self._eos_token_ids:
            mask[token_id // 8] |= 1 << token_id % 8
        return bytes(mask)
