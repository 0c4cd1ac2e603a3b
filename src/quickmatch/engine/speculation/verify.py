"""Verification: the target's own choices decide which of a draft's tokens stand.

Sample-and-match. At a sequence's last token the target's choice is made exactly as without a
draft: from its logits there, after temperature, top-k, top-p and penalties, with the random number
that is keyed by (seed, position). If a child of that node holds the chosen token, its logits are
at hand already, and the next choice is made there; if none does, the walk ends. So the emitted
tokens are those that plain decoding would emit from the same logits, whatever the draft was, and
follow its distribution exactly; the draft decides only how far one forward pass gets.

Equal up to rounding of the logits: a product of many rows may round otherwise than one of a single
row. The law is that of speculative sampling with point-mass drafts (Leviathan et al. 2023,
arXiv 2211.17192), with the random number shared between the draft's test and the draw.
"""

from dataclasses import dataclass, field

from torch import Tensor

from quickmatch.engine.batch import Sampled, SampleState
from quickmatch.engine.sampler import Row, Sampler, top_logprobs
from quickmatch.engine.speculation.tree import DraftTree


@dataclass(slots=True)
class _Walk:
    """One sequence's way down its tree."""

    first_row: int  # of its rows in the logits; row first_row + 1 + i is node i
    state: SampleState
    tree: DraftTree | None
    sampled: Sampled = field(default_factory=lambda: Sampled([]))
    node: int = -1

    @property
    def row(self) -> int:
        return self.first_row + 1 + self.node

    def take(self, token_id: int) -> bool:
        """Emit a token; whether a node holds it, so that the walk goes on."""
        self.sampled.token_ids.append(token_id)
        child = -1 if self.tree is None else self.tree.child(self.node, token_id)
        if child < 0:
            return False
        self.sampled.accepted.append(child)
        self.node = child
        return True


def verify(
    sampler: Sampler,
    states: list[SampleState],
    trees: list[DraftTree | None],
    logits: Tensor,
    *,
    best: list[int] | None = None,
) -> list[Sampled]:
    """Choose the tokens of every sequence: one, and one more for each accepted node.

    logits: [sum of 1 + len(tree), vocab]: a sequence's last token, then its nodes in order.
    best: the argmax of each row, if it is known already.
    """
    logits = logits.float()  # argmax is some times faster on float32 than on bfloat16
    out: list[Sampled] = []
    walks: list[_Walk] = []
    first_rows: list[int] = []
    first = 0
    for state, tree in zip(states, trees, strict=True):
        first_rows.append(first)
        if Row(state).is_plain:
            if best is None:
                best = logits.argmax(-1).tolist()
            out.append(_follow(tree, first, best))
        else:
            walks.append(_Walk(first, state, tree))
            out.append(walks[-1].sampled)
        first += 1 if tree is None else 1 + len(tree.token_ids)
    _walk_level_by_level(sampler, walks, logits)
    _fill_logprobs(states, first_rows, out, logits)
    sampler.forget_others(states)
    return out


def _follow(tree: DraftTree | None, first_row: int, best: list[int]) -> Sampled:
    """Follow the argmax of the logits as they are, once down the tree: children lie behind."""
    token_id = best[first_row]
    sampled = Sampled([token_id])
    if tree is not None:
        node = -1
        for child, parent in enumerate(tree.parents):
            if parent == node and tree.token_ids[child] == token_id:
                token_id, node = best[first_row + 1 + child], child
                sampled.accepted.append(child)
                sampled.token_ids.append(token_id)
    return sampled


def _walk_level_by_level(sampler: Sampler, walks: list[_Walk], logits: Tensor) -> None:
    """Draw for the rows that are reached only: a draw costs more than a row of logits."""
    while walks:
        rows = [Row(walk.state, walk.sampled.token_ids) for walk in walks]
        at = [walk.row for walk in walks]
        picked = logits if at == list(range(len(logits))) else logits[at]
        chosen = sampler.choose(rows, picked)
        walks = [w for w, token_id in zip(walks, chosen, strict=True) if w.take(token_id)]


def _fill_logprobs(
    states: list[SampleState], first_rows: list[int], out: list[Sampled], logits: Tensor
) -> None:
    """Add what was asked for. A sequence's first row and its accepted nodes' chose its tokens."""
    rows: list[int] = []
    token_ids: list[int] = []
    top_ks: list[int] = []
    asked: list[Sampled] = []
    for state, first, sampled in zip(states, first_rows, out, strict=True):
        if state.params.logprobs is not None:
            asked.append(sampled)
            rows += [first, *(first + 1 + node for node in sampled.accepted)]
            token_ids += sampled.token_ids
            top_ks += [state.params.logprobs] * len(sampled.token_ids)
    if asked:
        entries = iter(top_logprobs(logits[rows], token_ids, top_ks))
        for sampled in asked:
            sampled.logprobs = [next(entries) for _ in sampled.token_ids]
