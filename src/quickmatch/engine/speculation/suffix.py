"""Drafts without a model: what followed the same tokens before.

Owns: the choice between the native index and the plain one (same drafts, slower), and the form of
the draft. A sequence is drafted from its own prompt and output, and from the past outputs of its
scope; never from another scope's. It knows no engine and no tokenizer.

A scope is whoever may see the outputs: a tenant, an isolation key and a model version. Past
outputs are stored with the last tokens of their prompt in front, so that the first tokens can be
drafted too. Memory is bounded by tokens: the oldest and least drawn from go first.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from quickmatch.engine.speculation import suffix_index
from quickmatch.engine.speculation.tree import Draft

logger = logging.getLogger(__name__)


class SuffixIndex(Protocol):
    """What the native and the plain index have in common."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_past_bytes(self) -> int: ...
    @property
    def num_live_bytes(self) -> int: ...
    def start(self, sequence_id: int, scope: str, prompt: Sequence[int]) -> None: ...
    def extend(self, sequence_id: int, token_ids: Sequence[int]) -> None: ...
    def finish(self, sequence_id: int, remember: bool) -> None: ...
    def remember(self, scope: str, token_ids: Sequence[int]) -> None: ...
    def draft(self, sequence_id: int, max_nodes: int, ahead: Sequence[int]) -> Draft: ...


class SuffixDrafter:
    """Token ids are whole numbers from 0 to 2^32 - 2. One thread at a time.

    Methods that take a sequence_id raise KeyError if it was never started, or is finished.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_depth: int,
        min_confidence: float,
        index_type: Callable[..., SuffixIndex] | None = None,
    ) -> None:
        """max_tokens: of past outputs, over all scopes; max_depth: of a tree.

        min_confidence: a node is drafted if the chance of its whole path is at least this.
        index_type: left out, the native one, or the plain one where that is not built.
        """
        self._index = (index_type or best_index_type())(
            max_tokens=max_tokens, max_depth=max_depth, min_confidence=min_confidence
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of past outputs that are remembered."""
        return self._index.num_tokens

    @property
    def num_bytes(self) -> int:
        """Memory of the past outputs; by num_tokens, that of a token."""
        return self._index.num_past_bytes

    @property
    def num_live_bytes(self) -> int:
        """Memory of the live sequences' own indexes."""
        return self._index.num_live_bytes

    def start(self, sequence_id: int, scope: str, prompt: Sequence[int]) -> None:
        """Begin a sequence. sequence_id: unique among live ones, else ValueError."""
        self._index.start(sequence_id, scope, prompt)

    def extend(self, sequence_id: int, token_ids: Sequence[int]) -> None:
        """Tell emitted tokens, in order."""
        self._index.extend(sequence_id, token_ids)

    def finish(self, sequence_id: int, *, remember: bool = True) -> None:
        """End a sequence; its output goes to its scope's past outputs if `remember`."""
        self._index.finish(sequence_id, remember)

    def remember(self, scope: str, token_ids: Sequence[int]) -> None:
        """Store a past output; restoring, put the last 8 tokens of its prompt in front.

        One equal to a stored one is counted instead; a single token is not kept.
        """
        self._index.remember(scope, token_ids)

    def draft(self, sequence_id: int, max_nodes: int, ahead: Sequence[int] = ()) -> Draft:
        """Return likely continuations of the sequence, best path first; it may be empty.

        ahead: tokens that another drafter expects next; what follows those is asked for.

        confidences: Witten-Bell estimates. features: tokens of the longest match that speaks for
        the node, the path to it included, at most 63.
        """
        return self._index.draft(sequence_id, max(0, max_nodes), ahead)


@cache
def best_index_type() -> Callable[..., SuffixIndex]:
    """Return the native index, or the plain one where that is not built."""
    try:
        from quickmatch._native import SuffixIndex as NativeIndex
    except ImportError as error:
        logger.warning(
            "the native extension is missing (%s): drafts from past outputs take about ten "
            "times as long; install a C++ compiler, then quickmatch again",
            error,
        )
        return suffix_index.SuffixIndex
    return NativeIndex
