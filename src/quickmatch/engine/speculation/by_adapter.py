"""What speculation did for each set of weights: the base model's and every adapter's.

A head drafts for the traffic of its adapter, so that is what it is judged by. Owns the sums of
tokens and forwards; time can't be told apart, as a step serves all. Knows no decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from quickmatch.engine.speculation.tree import DraftTree
from quickmatch.engine.wire import AdapterSpeculation


@dataclass(slots=True)
class _Sums:
    num_verified: int = 0
    num_plain: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    num_emitted: int = 0


class ByAdapter:
    """One engine's, by adapter version id; None or "": the base model."""

    def __init__(self) -> None:
        self._sums: dict[str | None, _Sums] = {}

    def add(
        self, adapter: str | None, tree: DraftTree | None, num_accepted: int, num_emitted: int
    ) -> None:
        """Count a sequence's forward that went on with its output, and the tokens that it gave."""
        sums = self._sums.get(adapter)
        if sums is None:
            sums = self._sums[adapter] = _Sums()
        sums.num_emitted += num_emitted
        if tree is None:
            sums.num_plain += 1
            return
        sums.num_verified += 1
        sums.num_proposed += len(tree.token_ids)
        sums.num_accepted += num_accepted

    def forget(self, adapter: str) -> None:
        """Drop the sums of an adapter that is loaded no more."""
        self._sums.pop(adapter, None)

    def stats(self, drifts: Mapping[str, int]) -> dict[str, AdapterSpeculation]:
        """Return the sums. drifts: by adapter version id."""
        return {
            adapter or "": AdapterSpeculation(
                num_verified=sums.num_verified,
                num_plain=sums.num_plain,
                num_proposed=sums.num_proposed,
                num_accepted=sums.num_accepted,
                num_emitted=sums.num_emitted,
                num_drifts=drifts.get(adapter or "", 0),
            )
            for adapter, sums in self._sums.items()
        }
