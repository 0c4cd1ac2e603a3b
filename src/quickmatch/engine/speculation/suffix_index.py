"""The suffix drafter's index in plain Python: live sequences, past outputs, drafts from both.

Owns: each live sequence's own tokens, and the scopes' names. It says what the native index does and
does the same where that is not built; a test holds the two equal. One thread at a time.

The twin of src/native/suffix/suffix_index.hpp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from quickmatch.engine.speculation.continuations import Continuations, Evidence
from quickmatch.engine.speculation.ngram_chains import (
    MASK,
    MAX_MATCH,
    MULTIPLIER,
    NgramChains,
    Owner,
)
from quickmatch.engine.speculation.past_outputs import PastOutputs, Scope
from quickmatch.engine.speculation.tree import DraftTree

PROMPT_TAIL = 8  # tokens of the prompt, kept in front of a remembered output
_SPARE_SLOTS = 256  # a sequence's room to grow before its first rebuild


class _LiveText:
    """The tokens of one sequence, findable by their n-grams."""

    def __init__(self, num_tokens: int) -> None:
        self.chains = NgramChains(num_tokens + _SPARE_SLOTS)

    def append(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            if len(self.chains.tokens) == self.chains.max_slots:
                self._grow()
            _push(self.chains, token)

    def find(self, context: Sequence[int]) -> Evidence:
        owner = Owner(0, len(self.chains.tokens), 1)
        return Evidence(self.chains.tokens, self.chains.find(context, 0, lambda *_: owner))

    def _grow(self) -> None:
        larger = NgramChains(2 * self.chains.max_slots)
        for token in self.chains.tokens:
            _push(larger, token)
        self.chains = larger


def _push(chains: NgramChains, token: int) -> None:
    slot = len(chains.tokens)
    chains.put(slot, token, 0)
    if slot > 0:
        chains.index(slot - 1, 0, 0)


@dataclass(slots=True)
class _Live:
    scope: Scope
    text: _LiveText
    prompt_length: int


class SuffixIndex:
    """See SuffixDrafter."""

    def __init__(self, *, max_tokens: int, max_depth: int, min_confidence: float) -> None:
        self._past = PastOutputs(max_tokens)
        self._max_depth = max_depth
        self._min_confidence = min_confidence
        self._num_scopes = 0
        # A scope lives as long as a document or a sequence is in it.
        self._scopes: WeakValueDictionary[str, Scope] = WeakValueDictionary()
        self._live: dict[int, _Live] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens of past outputs."""
        return self._past.num_tokens

    @property
    def num_past_bytes(self) -> int:
        """Memory that past outputs take."""
        return self._past.num_bytes

    @property
    def num_live_bytes(self) -> int:
        """Memory that the live sequences take."""
        return sum(live.text.chains.num_bytes for live in self._live.values())

    def start(self, sequence_id: int, scope: str, prompt: Sequence[int]) -> None:
        """Index a new sequence's prompt. Raises ValueError if the id is live already."""
        if sequence_id in self._live:
            raise ValueError(
                f"sequence {sequence_id} is live already; finish it before it starts again"
            )
        live = _Live(self._scope(scope), _LiveText(len(prompt)), len(prompt))
        live.text.append(prompt)
        self._live[sequence_id] = live

    def extend(self, sequence_id: int, token_ids: Sequence[int]) -> None:
        """Append emitted tokens."""
        self._get(sequence_id).text.append(token_ids)

    def finish(self, sequence_id: int, remember: bool) -> None:
        """Forget a sequence; if told so, keep its output among the past ones."""
        done = self._get(sequence_id)
        tokens = done.text.chains.tokens
        if remember and len(tokens) > done.prompt_length:
            self._past.remember(done.scope, tokens[max(0, done.prompt_length - PROMPT_TAIL) :])
        del self._live[sequence_id]

    def remember(self, scope: str, token_ids: Sequence[int]) -> None:
        """Store a past output."""
        self._past.remember(self._scope(scope), token_ids)

    def draft(self, sequence_id: int, max_nodes: int, ahead: Sequence[int]) -> DraftTree:
        """Return a tree of at most max_nodes likely continuations of the sequence and `ahead`."""
        live = self._get(sequence_id)
        context = [*live.text.chains.tokens[-MAX_MATCH:], *ahead][-MAX_MATCH:]
        past = Evidence(self._past.tokens, self._past.find(live.scope, context))
        evidence = (live.text.find(context), past)
        columns = Continuations(evidence, self._min_confidence).grow(max_nodes, self._max_depth)
        return DraftTree(*columns)

    def _get(self, sequence_id: int) -> _Live:
        try:
            return self._live[sequence_id]
        except KeyError:
            raise KeyError(
                f"sequence {sequence_id} is not live: it was never started, or is finished"
            ) from None

    def _scope(self, name: str) -> Scope:
        scope = self._scopes.get(name)
        if scope is None:
            self._num_scopes += 1
            scope = self._scopes[name] = Scope(self._num_scopes * MULTIPLIER & MASK)
        return scope
