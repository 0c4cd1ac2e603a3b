"""What a step of the target costs on this machine, by sequences and rows.

Owns a table of measured seconds: one entry a batch size for the plain step (a row a sequence, its
own code path), and one a batch size and bucket of rows for steps with drafts. It is filled at the
start, by timed steps of no meaning, and refined by every step that only decodes. It does not know
what the rows hold.

The cost of rows is a staircase on CPUs (kernels work on blocks of rows), so nothing is assumed of
its form but that it never falls: each bucket has its own estimate, and a rising line is fitted
through them. Buckets not seen yet lie between their neighbours, scaled to the form that other
batch sizes show; that is optimistic on a staircase, so they get tried and corrected.

What slows everything alike (a longer context, a busy neighbour) is a factor of its own, the
*pace*, which moves faster than any entry: so entries that are rarely visited stay comparable.

The additive form over batch sizes is ours.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import exp
from typing import NamedTuple

from quickmatch.engine.speculation.estimate import Estimate
from quickmatch.engine.speculation.isotonic import isotonic

_WIDTHS = ((1, 16), (4, 32), (8, 64), (16, 128), (32, 256), (64, 512), (128, 1024), (256, 4096))
_PACE_RATE = 1 / 16
_NUM_SEEN_FOR_PACE = 8  # entries that are young explain surprises by themselves
_REFIT_EVERY, _REFIT_MOST = 8, 64  # observations of a batch size...
_REFIT_SHARE = 1 / 16  # ...or, between the two, that share of all
_REFIT_AGE = 512  # observations of others
_YOUNG = 2  # observations; a first time is slow: kernels are made for every number of rows
_GUESS_AGE = 32  # observations after which a plain step's cost is guessed again
_HOPE = 0.04  # of the seconds: what an unseen bucket is thought cheaper, so that it gets tried
_PRIOR_WEIGHT = 0.3  # of an unseen bucket, in observations
_FREE_ROW = 0.01  # of a plain step: what a row is thought to cost before any was seen

Points = list[tuple[int, float]]


def _row_edges() -> list[int]:
    edges: list[int] = []
    last = 0
    for width, end in _WIDTHS:
        edges += range(last + width, end + 1, width)
        last = end
    return edges


ROW_EDGES = _row_edges()  # a bucket holds the rows above the edge before it, up to its own


def points_to_measure(
    max_num_seqs: int, max_draft_tokens: int, max_rows: int = 512
) -> list[tuple[int, int]]:
    """Return the (num_seqs, num_rows) worth timing at the start, the most telling first.

    Stop wherever the time is up: each beginning is a usable table. rows == seqs is a plain step.
    """
    few, some, many = (0.0, 0.25, 1.0), (3.0, 7.0), (1.0, 7.0, 3.0, 15.0)  # drafts a sequence
    stages: list[tuple[tuple[int, ...], tuple[float, ...]]] = [
        ((1,), (0.0, *many)),
        ((8,), few + some),
        ((32,), few),
        ((1,), (11.0, 23.0, 2.0, 5.0, 31.0)),
        ((4,), few + some),
        ((max_num_seqs,), few),
        ((16,), few + some),
        ((2,), (0.0, *many)),
        ((32, 64), few + some),
        ((8, 4, 1, 16), (0.5, 2.0, 5.0, 11.0, 15.0)),
        ((max_num_seqs, 128), few + some),
    ]
    points: dict[tuple[int, int], None] = {}
    for sizes, drafts in stages:
        for num_seqs in sizes:
            for num_drafts in drafts:
                num_rows = num_seqs
                if num_drafts:
                    num_rows = _edge_of(num_seqs + max(1, int(num_seqs * num_drafts)))
                most = min(max_rows, num_seqs * (1 + max_draft_tokens))
                if num_seqs <= max_num_seqs and num_rows <= most:
                    points.setdefault((num_seqs, num_rows))
    return list(points)


def _edge_of(num_rows: int) -> int:
    return ROW_EDGES[min(bisect_left(ROW_EDGES, num_rows), len(ROW_EDGES) - 1)]


def interpolate(points: Points, at: float) -> float:
    """Between points linear; before the first flat; after the last with the mean slope."""
    (first, first_s), (last, last_s) = points[0], points[-1]
    if at <= first:
        return first_s
    if at >= last:
        return last_s + (at - last) * max(0.0, (last_s - first_s) / max(1, last - first))
    index = bisect_right(points, (at, float("inf")))
    (low, low_s), (high, high_s) = points[index - 1], points[index]
    return low_s + (high_s - low_s) * (at - low) / (high - low)


def _along(points: Points, ats: Sequence[float]) -> list[float]:
    """Interpolate at each of many places, which rise; quicker than one by one."""
    (first, first_s), (last, last_s) = points[0], points[-1]
    slope = max(0.0, (last_s - first_s) / max(1, last - first))
    out: list[float] = []
    index = 0
    for at in ats:
        if at <= first:
            out.append(first_s)
        elif at >= last:
            out.append(last_s + (at - last) * slope)
        else:
            while points[index][0] <= at:
                index += 1
            (low, low_s), (high, high_s) = points[index - 1], points[index]
            out.append(low_s + (high_s - low_s) * (at - low) / (high - low))
    return out


class StepCosts(NamedTuple):
    """What a step of a number of sequences costs, for those who look at many numbers of rows."""

    stairs: Points  # (num_rows, seconds) at every edge above the number of sequences
    factor: float  # on the seconds of all stairs
    plain_s: float  # of the step without drafts
    extra_s: float  # of this step beside the target's rows: drafting, rows of prompts


class CostTable:
    """Seconds of a target step. An empty table calls every step 1 s and rows nearly free."""

    def __init__(self) -> None:
        self._plain: dict[int, Estimate] = {}
        self._drafted: dict[int, dict[int, Estimate]] = {}  # batch size -> row edge -> seconds
        self._fits: dict[int, tuple[int, int, Points]] = {}  # made at, of how many, what
        self._guesses: dict[int, tuple[int, float]] = {}  # of plain steps: made at, seconds
        self._plain_s: dict[int, float] = {}  # of plain steps, since the last observation
        self._num_seen: dict[int, int] = {}
        self._pace = 0.0
        self._factor = 1.0  # exp of the pace
        self._now = 0
        self._other_row = Estimate()

    # ---- what was measured

    def observe(self, num_seqs: int, num_rows: int, seconds: float) -> None:
        """Take in the time of one step that only decoded. num_rows == num_seqs: a plain step."""
        self._now += 1
        if num_rows <= num_seqs:
            estimate = self._plain.setdefault(num_seqs, Estimate())
            if estimate.count < _YOUNG:
                self._guesses.clear()
        else:
            cells = self._drafted.setdefault(num_seqs, {})
            estimate = cells.setdefault(_edge_of(num_rows), Estimate())
            self._num_seen[num_seqs] = self._num_seen.get(num_seqs, 0) + 1
            if estimate.count < _NUM_SEEN_FOR_PACE:
                self._fits.pop(num_seqs, None)
        surprise = estimate.add(seconds, pace=self._pace, now=self._now)
        if estimate.count > _NUM_SEEN_FOR_PACE:
            self._pace += _PACE_RATE * surprise
            self._factor = exp(self._pace)
        self._plain_s.clear()

    def observe_mixed(
        self, num_seqs: int, num_rows: int, num_other_rows: int, seconds: float
    ) -> None:
        """Take in the time of a step that also ran `num_other_rows` rows of prompts."""
        extra_s = seconds - self.step_s(num_seqs, num_rows)
        self._other_row.add(max(extra_s, 1e-7) / num_other_rows)

    # ---- what a step will cost

    @property
    def factor(self) -> float:
        """How many times slower everything is of late than the entries say."""
        return self._factor

    @property
    def knows_plain(self) -> bool:
        """Whether any plain step was ever timed."""
        return bool(self._plain)

    def plain_s(self, num_seqs: int) -> float:
        """Return the seconds of a step without drafts."""
        seconds = self._plain_s.get(num_seqs)
        if seconds is None:
            seconds = self._plain_s[num_seqs] = self._find_plain(num_seqs)
        return seconds

    def _find_plain(self, num_seqs: int) -> float:
        known = self._plain.get(num_seqs)
        if known is not None and known.count >= _YOUNG:
            return exp(known.log_value + self._pace)
        made_at, guess = self._guesses.get(num_seqs, (-_GUESS_AGE, 0.0))
        if self._now - made_at >= _GUESS_AGE:
            guess = self._guess_plain(num_seqs)
            self._guesses[num_seqs] = self._now, guess
        return guess * self._factor

    def _guess_plain(self, num_seqs: int) -> float:
        """Return what other sizes suggest; 1 if there is none."""
        sizes = sorted(s for s, e in self._plain.items() if e.count >= _YOUNG)
        points = [(size, self._plain[size].value) for size in sizes or sorted(self._plain)]
        if not points:
            return 1.0
        last, last_s = points[-1]
        seconds = last_s * num_seqs / last if num_seqs > last else interpolate(points, num_seqs)
        drafted = self._drafted.get(num_seqs)
        if drafted:  # it is no more than steps with drafts take
            seconds = min(seconds, *(cell.value for cell in drafted.values()))
        known = self._plain.get(num_seqs)
        return seconds if known is None else min(seconds, known.value)

    def step_s(self, num_seqs: int, num_rows: int) -> float:
        """Return the seconds of a step; num_rows == num_seqs is the plain one."""
        if num_rows <= num_seqs:
            return self.plain_s(num_seqs)
        return interpolate(self._fit(num_seqs), num_rows) * self._factor

    def of_step(self, num_seqs: int, extra_s: float) -> StepCosts:
        """Return the costs of a step that takes extra_s beside the target's rows."""
        return StepCosts(self._fit(num_seqs), self._factor, self.plain_s(num_seqs), extra_s)

    @property
    def other_row_s(self) -> float:
        """Seconds that one row of a prompt adds to a step."""
        if self._other_row.count:
            return self._other_row.value
        return _FREE_ROW * self.plain_s(1)

    # ---- the rising line

    def _fit(self, num_seqs: int) -> Points:
        num_seen = self._num_seen.get(num_seqs, 0)
        kept = self._fits.get(num_seqs)
        if kept is not None:
            made_at, made_of, points = kept
            gap = min(max(_REFIT_EVERY, int(_REFIT_SHARE * made_of)), _REFIT_MOST)
            if num_seen - made_of < gap and self._now - made_at < _REFIT_AGE:
                return points
        points = self._make_fit(num_seqs)
        self._fits[num_seqs] = (self._now, num_seen, points)
        return points

    def _make_fit(self, num_seqs: int) -> Points:
        first = bisect_right(ROW_EDGES, num_seqs)
        last = bisect_left(ROW_EDGES, num_seqs * 33) + 1
        edges = ROW_EDGES[first : max(last, first + 1)]
        cells = self._drafted.get(num_seqs, {})
        values = self._guess(num_seqs, edges)
        own = [(i, cells[edge]) for i, edge in enumerate(edges) if edge in cells]
        known = [(i, cell) for i, cell in own if cell.count >= _YOUNG] or own
        if known:  # bend the guess so that it goes through what was seen
            ratios = [(i, cell.value / values[i]) for i, cell in known]
            last, last_ratio = ratios[-1]  # flat behind it
            bends = [*_along(ratios, range(last)), *[last_ratio] * (len(edges) - last)]
            values = [v * bend for v, bend in zip(values, bends, strict=True)]
        counts = [0] * len(edges)
        for i, cell in own:
            counts[i] = cell.count
            values[i] = min(values[i], cell.value)  # the same, but for a first time
        weights = [min(count, 32) or _PRIOR_WEIGHT for count in counts]
        values = isotonic(values, weights)
        hopeful = [v * (1.0 - _HOPE / (1 + n)) for v, n in zip(values, counts, strict=True)]
        return list(zip(edges, hopeful, strict=True))

    def _guess(self, num_seqs: int, edges: Sequence[int]) -> list[float]:
        """Return the seconds at `edges` as other batch sizes, or the plain step, suggest."""
        measured = sorted(s for s, c in self._drafted.items() if len(c) >= 2 and s != num_seqs)
        place = bisect_left(measured, num_seqs)
        low = self._points(measured[place - 1]) if place > 0 else None
        high = self._points(measured[place]) if place < len(measured) else None
        if low and high:
            low_size, high_size = measured[place - 1], measured[place]
            share = (num_seqs - low_size) / (high_size - low_size)
            ends = zip(_along(low, edges), _along(high, edges), strict=True)
            return [below * (1 - share) + above * share for below, above in ends]
        if low:  # as many rows a sequence cost as many plain steps
            size = measured[place - 1]
            scale = self.plain_s(num_seqs) / self.plain_s(size)
            return [s * scale for s in _along(low, [e * size / num_seqs for e in edges])]
        if high:
            return _along(high, edges)
        plain_s = self.plain_s(num_seqs) / self._factor
        if self._drafted.get(num_seqs):  # from the plain step up: hopeful, so that it gets tried
            own = [(num_seqs, plain_s), *self._points(num_seqs)]
            return _along(own, edges)
        return [plain_s * (1 + _FREE_ROW * (e - num_seqs)) for e in edges]

    def _points(self, num_seqs: int) -> Points:
        return [(edge, cell.value) for edge, cell in sorted(self._drafted[num_seqs].items())]
