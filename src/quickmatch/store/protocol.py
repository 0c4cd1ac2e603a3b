"""The document protocol: what a store must do, whatever database stands behind it.

Filters are a subset of MongoDB's query language, so that MongoDB can serve them as they are:
`{"state": "RUNNING"}`, `{"timings.total_ms": {"$gt": 200}}`, `{"tags.app": {"$in": ["a", "b"]}}`.
Operators: $eq $ne $gt $gte $lt $lte $in $nin $exists. Dotted names reach into documents; all
conditions of a filter must hold. A kind's filters and orders may use any field; `indexed` fields
are fast.

Every method is safe from several threads and several processes at once. Calls block: an event
loop runs them in a thread where they may be slow.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from quickmatch.core.errors import NotFound
from quickmatch.store.documents import Document

D = TypeVar("D", bound=Document)
Filter = dict[str, Any]


class Store(Protocol):
    """Documents by kind and id. Raises StoreError where the database fails (disk full, locked)."""

    def insert(self, *documents: Document) -> None:
        """Add new documents, all or none. Raises Conflict if an id is taken."""

    def put(self, *documents: Document) -> None:
        """Add or replace documents, all or none."""

    def get(self, kind: type[D], id: str) -> D | None:
        """Return the document of that id, or None."""

    def update(self, kind: type[D], id: str, change: Callable[[D], None]) -> D:
        """Read, apply `change` to the document in place, write: one atomic step.

        `change` may raise to leave the document as it was. Raises NotFound.
        """

    def delete(self, kind: type[D], id: str) -> bool:
        """Delete; return whether it was there."""

    def delete_many(self, kind: type[D], where: Filter) -> int:
        """Delete all that match; return how many there were."""

    def find(
        self,
        kind: type[D],
        where: Filter | None = None,
        *,
        order_by: str = "created_at",
        descending: bool = False,
        limit: int | None = None,
    ) -> Iterator[D]:
        """Yield matching documents in order; ties by id. Consistent as of the first one."""

    def count(self, kind: type[D], where: Filter | None = None) -> int:
        """Return how many match."""

    def version(self) -> int:
        """Return a number that changes when anyone, in any process, has written. Cheap to poll."""

    def close(self) -> None:
        """Release files and connections."""


def require(store: Store, kind: type[D], id: str) -> D:
    """Return the document, or raise NotFound that lists the names that do exist."""
    document = store.get(kind, id)
    if document is None:
        known = [d.id for d in store.find(kind, limit=12)]
        hint = f"there are: {', '.join(known)}" if known else f"there are no {kind.kind}s yet"
        raise NotFound(f"no {kind.kind} named {id!r}; {hint}")
    return document
