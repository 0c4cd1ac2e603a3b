"""Whether, for whom and how deep a drafter that runs a model (a head, a small model) is asked.

Owns what drafting takes, and whether it is in use. What its trees promise by width and depth is
told by promise.py. It does not know sequences: the controller passes what each may gain.

A drafter goes on along a path for as long as the next token is expected to bring more than its
level takes: so a plan's depth is a bound, and what it takes is the mean of what it took.

Guards: it is asked only where the predicted tokens a second are 3 % better, goes out of use when
they were no better in 32 steps, and stays in or out for 16 steps. While in use each step still
asks only for the sequences, and to the depth, that pay.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from operator import itemgetter

from quickmatch.engine.speculation.assessor import Promises
from quickmatch.engine.speculation.costs import CostTable, interpolate
from quickmatch.engine.speculation.estimate import Estimate
from quickmatch.engine.speculation.promise import WIDTHS

MARGIN = 1.03
DWELL_STEPS = 16
_IDLE_STEPS = 32
_LOOK_EVERY = 8  # steps, while out of use
_DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
_SHARES = (0.5, 0.25, 0.0)  # of those who gain: the most, or one
_PASS_SHARE = 0.08  # of a plain step: a level of the drafter's, before any is timed
_FIXED_LEVELS = 1.5  # what is done once takes as long as so many, where one depth alone was timed
_SEARCH_EVERY = 4  # decisions while in use, at which other ways than the last are looked at
_MOST_LEAST_PATH = 0.5  # likelier paths are gone on from, whatever a level takes
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What to ask of the model drafter in this step."""

    sequence_ids: tuple[int, ...]
    depth: int
    width: int  # candidates a level
    max_nodes: int  # a sequence
    is_trial: bool = False
    least_path: float = 0.0  # of a path that the model goes on from


@dataclass(slots=True)
class Outlook:
    """What the step gives without a model's drafts."""

    tokens_per_s: float
    gains: list[float]  # by sequence: expected accepted tokens of its other drafts
    nodes: list[int]  # by sequence: their rows
    extra_s: float  # on top of the table: rows of prompts
    gain: Callable[[int], float]  # accepted tokens expected of so many nodes, the likeliest


class ModelUse:
    """The decisions about one engine's model drafters."""

    def __init__(self, promises: Promises, max_depth: int, max_nodes: int) -> None:
        self._promises, self._max_nodes = promises, max_nodes
        self._depths = [d for d in _DEPTHS if d < max_depth] + [max_depth]
        self.beside_s = 0.0  # of a step in which it drafts: the host's time, heads that are told
        self._drafting: dict[int, dict[int, Estimate]] = {}  # seconds, by batch and depth
        self._known_s: dict[tuple[int, int], float] = {}  # by rows and depth, until the next
        self._levels: dict[int, Estimate] = {}  # seconds of a level, by batch
        self.renew()

    def renew(self) -> None:
        """Forget what was promised: it is another drafter now. A pass takes as long as before."""
        self.is_on = False
        self._promises.renew()
        self._totals = {w: self._promises.look(w) for w in WIDTHS}  # at the last decision
        self._width = 1
        self._share = 1.0
        self._place = 0  # in _depths: the depth of the last way
        self._changed: int | None = None
        self._worth = 0
        self._next_look = 0
        self._num_decisions = self._num_searches = 0

    # ---- what was seen

    def drafted(
        self, plan: ModelPlan, num_seqs: int, num_levels: int, seconds: float, factor: float
    ) -> None:
        """Take in what a drafting took. To be told only of one that had little to catch up with:
        one that took in a prompt, too, would stand for ever, since by it no other pays.

        num_levels: of the deepest tree. factor: how many times slower the machine is than usual
        (CostTable.factor).
        """
        batch, seconds = _batch(num_seqs * plan.width), seconds / factor
        self._drafting.setdefault(batch, {}).setdefault(plan.depth, Estimate()).add(seconds)
        self._levels.setdefault(batch, Estimate()).add(seconds / (_FIXED_LEVELS + num_levels))
        self._known_s.clear()

    def soften(self) -> None:
        """Doubt the promises: calibration has found a drift."""
        self._promises.soften()
        self._next_look = 0

    def look_again(self) -> None:
        """There is news: decide anew at the next step."""
        self._next_look = 0

    def drafting_s(self, costs: CostTable, num_rows: int, depth: int) -> float:
        """Return the seconds of drafting `depth` levels for num_rows sequences times width."""
        if not self._drafting:
            return _PASS_SHARE * costs.plain_s(1) * (_FIXED_LEVELS + depth)
        seconds = self._known_s.get((num_rows, depth))
        if seconds is None:
            seconds = self._known_s[num_rows, depth] = self._find_drafting(num_rows, depth)
        return seconds * costs.factor

    def _find_drafting(self, num_rows: int, depth: int) -> float:
        wanted = _batch(num_rows)
        nearest, *others = sorted(self._drafting, key=lambda b: (abs(b - wanted), b))
        seconds, rows = self._at_depth(nearest, depth), _BATCHES[nearest]
        if nearest == wanted:
            return seconds
        if not others:
            return seconds * sqrt(max(1.0, _BATCHES[wanted] / rows))  # rows batch well, or do not
        slope = (seconds - self._at_depth(others[0], depth)) / (rows - _BATCHES[others[0]])
        slope = min(max(slope, 0.0), seconds / (1 + rows))
        return seconds + slope * (_BATCHES[wanted] - rows)

    def _at_depth(self, batch: int, depth: int) -> float:
        """What a drafting takes before its first level is much of it: a line, not a multiple."""
        points = [(d, one.value) for d, one in sorted(self._drafting[batch].items())]
        below = [point for point in points if point[0] <= depth][-1:]
        above = [point for point in points if point[0] > depth][:1]
        if below and above:
            return interpolate(below + above, depth)
        known, seconds = (below or above)[0]
        return seconds * (_FIXED_LEVELS + depth) / (_FIXED_LEVELS + known)

    # ---- the decision

    def is_looking(self, now: int) -> bool:
        """Return whether `plan` is worth calling: always while in use, else now and then."""
        return self.is_on or now >= self._next_look

    def plan(
        self,
        costs: CostTable,
        outlook: Outlook,
        able: Sequence[tuple[int, float]],
        *,
        now: int,
        is_searching: bool = True,
    ) -> tuple[list[int], int, int, float] | None:
        """Return (indices of sequences, depth, width, least path), or None where it does not pay.

        able: the indices of sequences it can draft for, and what it promises each, beside the
        usual. is_searching: look at other ways than the last, too.
        """
        self._num_decisions += is_searching
        if is_searching and (not self.is_on or self._num_decisions % _SEARCH_EVERY == 0):
            rate, chosen, depth, width = self._best(costs, outlook, able)
        else:
            rate, chosen, depth, width = self._last_way(costs, outlook, able)
        advantage = rate / outlook.tokens_per_s
        if self.is_on:
            if advantage > 1.0:
                self._worth = now
            elif now - self._worth >= _IDLE_STEPS and self._has_dwelt(now):
                self.is_on, self._changed = False, now
        elif advantage > MARGIN and self._has_dwelt(now):
            self.is_on, self._changed, self._worth = True, now, now
        else:
            self._next_look = now + _LOOK_EVERY
        if not self.is_on or advantage <= MARGIN:
            return None
        self._width = width
        return chosen, depth, width, self._least_path(costs, len(chosen) * width, rate)

    def _least_path(self, costs: CostTable, num_rows: int, tokens_per_s: float) -> float:
        """Return how likely a path is to be for its next level to be worth the time."""
        level = self._levels.get(_batch(num_rows))
        if level is None:
            return 0.0
        return min(level.value * costs.factor / num_rows * tokens_per_s, _MOST_LEAST_PATH)

    def _has_dwelt(self, now: int) -> bool:
        return self._changed is None or now - self._changed >= DWELL_STEPS

    def _best(
        self, costs: CostTable, outlook: Outlook, able: Sequence[tuple[int, float]]
    ) -> tuple[float, list[int], int, int]:
        """Return the best of the last way's neighbours and, in turn, of all others.

        A few ways a step suffice: what is best changes slowly, and each has its turn.
        """
        depths, place, width = self._depths, self._place, self._width
        turn, self._num_searches = self._num_searches, self._num_searches + 1
        other = WIDTHS[turn % len(WIDTHS)]
        for w in {width, other}:
            self._totals[w] = self._promises.look(w)
        places = {place, max(place - 1, 0), min(place + 1, len(depths) - 1), turn % len(depths)}
        ways = [(depths[i], width, 1.0) for i in places]
        ways.append((depths[place], other, 1.0))
        if len(able) > 1:
            ways.append((depths[place], width, _SHARES[turn % len(_SHARES)]))
        rated = []
        for depth, width, share in ways:
            taken = self._taken(outlook, able, depth, width, share)
            rate = self._rate(costs, outlook, taken, depth, width)
            rated.append((rate, depth, width, share, [i for _, i in taken]))
        rate, depth, width, self._share, chosen = max(rated, key=itemgetter(0, 1, 2, 3))
        self._place = depths.index(depth)
        return rate, chosen, depth, width

    def _last_way(
        self, costs: CostTable, outlook: Outlook, able: Sequence[tuple[int, float]]
    ) -> tuple[float, list[int], int, int]:
        depth, width = self._depths[self._place], self._width
        taken = self._taken(outlook, able, depth, width, self._share)
        return self._rate(costs, outlook, taken, depth, width), [i for _, i in taken], depth, width

    def _rate(
        self,
        costs: CostTable,
        outlook: Outlook,
        taken: Sequence[tuple[float, int]],
        depth: int,
        width: int,
    ) -> float:
        """Return the tokens a second of one way to do it. taken: for whom, and what they gain."""
        if not taken:
            return 0.0
        num_seqs = len(outlook.gains)
        nodes = min(width * depth, self._max_nodes)
        before, added = sum(outlook.nodes), sum([nodes - outlook.nodes[i] for _, i in taken])
        tokens = num_seqs + sum(outlook.gains) + sum([gain for gain, _ in taken])
        fixed_s = outlook.extra_s + self.beside_s
        fixed_s += self.drafting_s(costs, len(taken) * width, depth)
        num_rows = num_seqs + max(before + added, 1)
        rate = tokens / (costs.step_s(num_seqs, num_rows) + fixed_s)
        if 0 < added < before:  # or in the place of the unlikeliest others, on the same stair
            tokens -= outlook.gain(before) - outlook.gain(before - added)
            same = tokens / (costs.step_s(num_seqs, num_seqs + before) + fixed_s)
            rate = max(rate, same)
        return rate

    def _taken(
        self,
        outlook: Outlook,
        able: Sequence[tuple[int, float]],
        depth: int,
        width: int,
        share: float,
    ) -> list[tuple[float, int]]:
        """Return the (tokens more than without, index) of that share of those who gain most."""
        usual, others = self._totals[width][depth - 1], outlook.gains
        behind = self._promises.behind
        gains = [(ratio * usual + behind - others[i], i) for i, ratio in able]
        gains = sorted([pair for pair in gains if pair[0] > 0.0], reverse=True)
        return gains[: max(1, round(len(gains) * share))]


def _batch(num_rows: int) -> int:
    return min(bisect_left(_BATCHES, num_rows), len(_BATCHES) - 1)
