"""Grows draft trees level by level, from what a drafting model says of each level's tokens.

Owns which tokens are gone on with: at every level the `width` likeliest paths of each sequence. All
that were looked at are candidates for the tree, which in the end keeps the likeliest. Plain Python,
no tensors; it knows no model.

Invariant: a node's path is at most as likely as its parent's, so that the likeliest nodes, and
those above a bound, are a tree again. What one sequence's tree holds does not depend on others'.

Source: EAGLE-2 (arXiv 2406.16858), expansion and reranking.
"""

from dataclasses import dataclass, field

from quickmatch.engine.speculation.tree import DraftTree, Source


class Beams:
    """The trees of several sequences while they grow, and the rows of their next level.

    A level has `width` rows a sequence, the first level one (the sequence's last token). A row is
    a node to go on from. Where a sequence has too few, rows are filled up, and what the model says
    of those is not looked at.
    """

    def __init__(
        self,
        num_sequences: int,
        *,
        width: int,
        min_path: float,
        source: Source,
        least_path: float = 0.0,
    ) -> None:
        """Paths less likely than min_path are left out, below least_path not gone on from."""
        self._width = width
        self._min_path = min_path
        self._least_path = least_path
        self._source = source
        self._beams = [_Beam() for _ in range(num_sequences)]
        self._rows_each = 1
        self.token_ids: list[int] = []  # of the next level's rows, sequence by sequence
        self.parent_rows: list[int] = []  # and their parents' rows in the last level

    def grow(self, token_ids: list[list[int]], confidences: list[list[float]]) -> bool:
        """Add a level: for each row the likeliest tokens that may follow it, best first.

        Returns whether any path is worth going on with; then token_ids and parent_rows tell how.
        """
        self.token_ids, self.parent_rows = [], []
        is_alive = False
        for index, beam in enumerate(self._beams):
            first = index * self._rows_each
            own = slice(first, first + self._rows_each)
            self._add_level(beam, token_ids[own], confidences[own])
            missing = self._width - len(beam.nodes)
            self.token_ids += [*(beam.tree.token_ids[n] for n in beam.nodes), *[0] * missing]
            self.parent_rows += [*(first + row for row in beam.rows), *[first] * missing]
            is_alive = is_alive or bool(beam.nodes)
        self._rows_each = self._width
        return is_alive

    def best(self, max_nodes: int) -> list[DraftTree]:
        """Return each tree's max_nodes likeliest nodes, the likeliest first."""
        kept = []
        for beam in self._beams:
            # A stable sort: a child that is certain stays behind its parent.
            order = sorted(range(len(beam.tree)), key=lambda node: -beam.paths[node])
            kept.append(beam.tree.keep(order[:max_nodes]))
        return kept

    def _add_level(
        self, beam: "_Beam", token_ids: list[list[int]], confidences: list[list[float]]
    ) -> None:
        added: list[tuple[float, int, int]] = []  # (-path, node, its parent's row)
        for row, parent in enumerate(beam.nodes):
            path = beam.paths[parent] if parent >= 0 else 1.0
            for token_id, confidence in zip(token_ids[row], confidences[row], strict=True):
                if not path * confidence >= self._min_path:  # nor what is no number
                    break
                node = beam.tree.add(token_id, parent, confidence, self._source)
                beam.paths.append(path * confidence)
                added.append((-path * confidence, node, row))
        added.sort()
        chosen = [one for one in added[: self._width] if -one[0] >= self._least_path]
        beam.nodes = [node for _, node, _ in chosen]
        beam.rows = [row for _, _, row in chosen]


@dataclass(slots=True)
class _Beam:
    """One sequence's."""

    tree: DraftTree = field(default_factory=DraftTree)
    paths: list[float] = field(default_factory=list)  # of the tree's nodes
    nodes: list[int] = field(default_factory=lambda: [-1])  # of the level to go on from
    rows: list[int] = field(default_factory=list)  # of their parents, within the sequence's
