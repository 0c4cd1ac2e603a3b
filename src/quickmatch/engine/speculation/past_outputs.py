"""Past outputs of all scopes, in one ring of slots.

Owns: which slots belong to which document, and who goes when there is no room: the oldest, unless
it was drawn from since it was last passed; then it is written again as the newest (clock's second
chance), as far as a budget goes. A document equal to a stored one is counted, not stored.

Invariant: a document's slots are contiguous; the documents are in the ring's order; find() returns
only places in documents of the scope asked for, however buckets collide.

The plain twin of src/native/suffix/past_outputs.hpp.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from quickmatch.engine.speculation.ngram_chains import NgramChains, Occurrence, Owner

_MAX_TIMES = 255
_DRAWN_MATCH = 4  # a shorter match is no sign that a document is of use
_SECOND_CHANCES = 4  # tokens written again for each new one, at most
_MIN_DOCUMENT = 2  # one token says nothing about what follows
_DOCUMENT_BYTES = 80  # of a document's record and its digest's, about, as the native twin has them
_HIDDEN = Owner(0, 0, 0)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Scope:
    """Who may see whose outputs: a tenant, an isolation key and a model version."""

    seed: int


@dataclass(slots=True)
class _Document:
    scope: Scope
    owner: Owner
    digest: int
    was_drawn: bool = False  # since it was written


_Pending = list[tuple[_Document, "array[int]"]]  # to be written


class PastOutputs:
    """Documents of at most max_tokens in all, findable by their n-grams."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._chains = NgramChains(max_tokens)
        self._documents: deque[_Document] = deque()  # oldest first
        self._base = 0  # ordinal of the first of them
        self._by_digest: dict[int, int] = {}  # to an ordinal
        self._cursor = 0
        self.num_tokens = 0

    @property
    def tokens(self) -> Sequence[int]:
        """What is in the slots."""
        return self._chains.tokens

    @property
    def num_bytes(self) -> int:
        """Memory of all parts, as the native twin has them."""
        return self._chains.num_bytes + len(self._documents) * _DOCUMENT_BYTES

    def remember(self, scope: Scope, token_ids: Sequence[int]) -> None:
        """Store a document, its end alone if it is too long; drop others to make room."""
        kept = array("I", token_ids[max(0, len(token_ids) - self._max_tokens) :])
        digest = hash((scope.seed, kept.tobytes()))
        if len(kept) < _MIN_DOCUMENT:
            return
        if self._count_again(digest, scope, kept):
            return
        pending: _Pending = [(_Document(scope, Owner(0, 0, 1), digest), kept)]
        budget = _SECOND_CHANCES * len(kept)
        for document, tokens in pending:  # it grows meanwhile
            budget = self._make_room(len(tokens), budget, pending)
            self._write(document, tokens)

    def find(self, scope: Scope, context: Sequence[int]) -> list[Occurrence]:
        """Return where the context's last tokens occurred in the scope's documents."""
        marks = self._chains.marks  # a document's ordinal

        def owner_of(slot: int, previous: int) -> Owner | None:
            age, age_before = marks[slot] - self._base, marks[previous] - self._base
            # Chains lead to older places; one that does not has been overwritten.
            if not 0 <= age <= age_before or (age == age_before and slot > previous):
                return None
            document = self._documents[age]
            return document.owner if document.scope is scope else _HIDDEN

        found = self._chains.find(context, scope.seed, owner_of)
        if found and found[0].length >= _DRAWN_MATCH:
            self._documents[marks[found[0].next - 1] - self._base].was_drawn = True
        return found

    def _count_again(self, digest: int, scope: Scope, tokens: "array[int]") -> bool:
        ordinal = self._by_digest.get(digest)
        if ordinal is None:
            return False
        document = self._documents[ordinal - self._base]
        begin, end, times = document.owner
        if document.scope is not scope or self._chains.tokens[begin:end] != tokens:
            return False
        document.owner = Owner(begin, end, min(times + 1, _MAX_TIMES))
        document.was_drawn = True
        return True

    def _make_room(self, length: int, budget: int, pending: _Pending) -> int:
        """Drop the oldest until `length` slots are free at the cursor. Return the budget left."""
        while self._documents:
            oldest = self._documents[0].owner.begin
            if self._cursor > oldest:
                if self._max_tokens - self._cursor >= length:
                    return budget
                self._cursor = 0
            else:
                if oldest - self._cursor >= length:
                    return budget
                budget = self._drop_oldest(budget, pending)
        self._cursor = 0
        return budget

    def _drop_oldest(self, budget: int, pending: _Pending) -> int:
        document = self._documents.popleft()
        self._base += 1
        owner = document.owner
        length = owner.end - owner.begin
        if document.was_drawn and length <= budget:
            budget -= length
            again = self._chains.tokens[owner.begin : owner.end]
            pending.append((_Document(document.scope, owner, document.digest), again))
        if self._by_digest.get(document.digest) == self._base - 1:
            del self._by_digest[document.digest]
        self.num_tokens -= length
        return budget

    def _write(self, document: _Document, tokens: "array[int]") -> None:
        ordinal = self._base + len(self._documents)
        begin = self._cursor
        for slot, token in enumerate(tokens, begin):
            self._chains.put(slot, token, ordinal)
            if slot > begin:
                self._chains.index(slot - 1, begin, document.scope.seed)
        self._cursor = begin + len(tokens)
        document.owner = Owner(begin, self._cursor, document.owner.times)
        self._by_digest.setdefault(document.digest, ordinal)
        self._documents.append(document)
        self.num_tokens += len(tokens)
