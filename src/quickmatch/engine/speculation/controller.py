"""Chooses each step who drafts, how much, and which drafted tokens are verified.

It maximises expected tokens a second: calibrated path probabilities over the measured cost of the
step. It owns the decisions; it knows no token's meaning, no tensor and no drafter.

A step, in this order (what is not needed is left out):

    should_draft(id, match_length=0) -> bool              each sequence that could draft cheaply
    wants_model(ids, trees, able=…, num_other_rows=…)     if a model drafter is loaded
    model_drafted(num_seqs=…, depth=…, seconds=…)         if it was asked
    choose(ids, trees, num_other_rows=…, max_rows=…)      or choose_none(ids) where no tree is
    verified(id, tree, accepted, scope="")                each verified draft
    stepped(num_seqs=…, num_rows=…, num_emitted=…, draft_s=…, step_s=…, is_decode_only=…)

and forget(id) at a sequence's end, renew_model() when another head was loaded, figures() for
/metrics.

Invariant: a step for which everything is None costs what plain decoding costs, and what is spent
only to learn is on an allowance (trials.py).

Source: Θ and its guards, SPECULATION.md §7.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.figures import Figures
from quickmatch.engine.speculation.model_use import MARGIN, ModelPlan, ModelUse
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.step_drafts import MODEL_SOURCES, StepDrafts, merge_drafts
from quickmatch.engine.speculation.tree import DraftTree
from quickmatch.engine.speculation.trials import SHARE, Trials
from quickmatch.engine.speculation.verdicts import Verdicts

_FLOOR = 0.02  # path probability of a node below which it is not looked at
_TRIAL_NODES = 4
_TRIAL_DEPTH = 2  # of a model's trial
_LONGEST_PAUSE = 32  # steps between two drafts of a sequence that do not help
_PLAIN_STALE = 64  # steps
_RATE_KEPT = 0.97  # of the tokens and seconds behind the usual rate, from step to step
_FIRST_ASK_S = 25e-6  # of a cheap draft, before any is timed


class Controller:
    """One engine's. Not thread-safe: it lives in the engine's loop."""

    def __init__(self, costs: CostTable, config: SpeculationConfig) -> None:
        self._costs = costs
        self._config = config
        self._verdicts = Verdicts()
        self._model = ModelUse(config.max_depth, config.max_draft_tokens)
        self._states: dict[int, RequestState] = {}
        self._figures = Figures()
        self._trials = Trials()
        self._now = 0  # steps
        self._num_seqs = 1  # that decode, in the last step that proposed
        self._is_drafting = False  # the last step that could choose did
        self._ask_s = _FIRST_ASK_S
        self._recent = (1e-9, 1e-9)  # tokens and seconds
        self._last_plain = 0
        self._begin()

    def _begin(self) -> None:
        """Forget what belongs to one step."""
        self._has_opened = False
        self._is_plain_turn = False
        self._longest_pause = 1
        self._num_asked = 0
        self._num_decoding = 0
        self._num_verified = 0
        self._num_verified_tokens = 0
        self._plan: ModelPlan | None = None
        self._model_s = 0.0
        self._planned_s = 0.0
        self._known: dict[int, list[float]] = {}  # path probabilities by id of a tree
        self._drafts: StepDrafts | None = None

    def _open(self) -> None:
        """Before a step's first question: is it a plain one's turn; how often to ask."""
        self._has_opened = True
        num_seqs = self._num_seqs
        plain_s = self._costs.plain_s(num_seqs)
        pause = self._ask_s * num_seqs / (SHARE * plain_s)
        self._longest_pause = min(int(pause) + 1, _LONGEST_PAUSE)
        if self._now - self._last_plain > _PLAIN_STALE:
            tokens, seconds = self._recent
            loss_s = plain_s - num_seqs * seconds / tokens
            if self._trials.plain.affords(loss_s):
                self._trials.plain.spend(loss_s)
                self._is_plain_turn = True

    # ---- who drafts

    def should_draft(self, sequence_id: int, *, match_length: int = 0) -> bool:
        """Return whether to have the cheap drafters draft for a sequence in this step.

        match_length: of the suffix drafter, if known without drafting; growth ends a pause.
        """
        if not self._config.is_adaptive:
            return True
        if not self._has_opened:
            self._open()
        if self._is_plain_turn:
            return False
        wanted = self._state(sequence_id).ask(self._now, match_length, self._longest_pause)
        self._num_asked += wanted
        return wanted

    def wants_model(
        self,
        sequence_ids: Sequence[int],
        trees: Sequence[Sequence[DraftTree]],
        *,
        able: Sequence[int],
        num_other_rows: int = 0,
    ) -> ModelPlan | None:
        """Return for which sequences and how deep to have a model draft; None: not in this step.

        trees: what was drafted already, by sequence; if this returns None, `choose` is to be
        given the same. able: ids of those that a model drafter can draft for.
        """
        if not self._config.is_adaptive:
            if able:
                depth, nodes = self._config.max_depth, self._config.max_draft_tokens
                self._plan = ModelPlan(tuple(able), depth, 1, nodes)
            return self._plan
        if not self._has_opened:
            self._open()
        if self._is_plain_turn or not able:
            return None
        if self._model.is_looking(self._now):
            self._plan = self._plan_model(sequence_ids, trees, able, num_other_rows)
        if self._plan is None and not self._model.is_on:
            self._plan = self._plan_trial(len(sequence_ids), able)
        if self._plan is not None:
            num_rows = len(self._plan.sequence_ids) * self._plan.width
            self._planned_s = self._model.drafting_s(self._costs, num_rows, self._plan.depth)
        return self._plan

    def model_drafted(self, *, num_seqs: int, depth: int, seconds: float) -> None:
        """Take in what the drafting of the last plan took."""
        width = self._plan.width if self._plan is not None else 1
        self._model.drafted(num_seqs, depth, width, seconds)
        self._model_s += seconds

    # ---- what is verified

    def choose(
        self,
        sequence_ids: Sequence[int],
        trees: Sequence[Sequence[DraftTree]],
        *,
        num_other_rows: int = 0,
        max_rows: int,
    ) -> list[DraftTree | None]:
        """Return for each sequence the tree to verify, or None; all None is the plain step.

        trees: any number of drafts a sequence. max_rows: nodes that the step has room for.
        """
        if not self._has_opened:
            self._open()
        num_seqs = self._num_seqs = self._num_decoding = len(sequence_ids)
        if self._drafts is None or self._plan is not None:
            self._drafts = self._gather(sequence_ids, trees)
        drafts, config = self._drafts, self._config
        if config.is_adaptive:
            num_nodes = self._num_worth(drafts, num_seqs, num_other_rows, max_rows)
        else:
            num_nodes = min(len(drafts.pool), max_rows)
        self._is_drafting = num_nodes > 0
        if num_nodes:
            states = [self._states[i] for i in sequence_ids]
            min_gain = self._ask_s * self._recent[0] / self._recent[1]
            return drafts.take(num_nodes, config.max_draft_tokens, states, min_gain)
        return self._choose_trial(sequence_ids, drafts, max_rows)

    def choose_none(self, sequence_ids: Sequence[int]) -> list[DraftTree | None]:
        """Stand in for `choose` where no tree was made."""
        self._num_seqs = self._num_decoding = len(sequence_ids)
        return [None] * len(sequence_ids)

    # ---- what was learned

    def verified(
        self, sequence_id: int, tree: DraftTree, accepted: Sequence[int], scope: str = ""
    ) -> None:
        """Learn from one verification.

        accepted: the accepted nodes of `tree`, in order; the walk ended at a leaf, or because the
        target chose another token. scope: what drifts are told apart by (tenant and weights).
        """
        state = self._state(sequence_id)
        self._verdicts.add(state, tree, accepted, scope)
        self._figures.add_verified(tree, accepted)
        self._num_verified += 1
        self._num_verified_tokens += len(accepted) + 1
        if accepted and tree.sources[accepted[0]] not in MODEL_SOURCES:
            state.helped()

    def stepped(
        self,
        *,
        num_seqs: int,
        num_rows: int,
        num_emitted: int,
        draft_s: float,
        step_s: float,
        is_decode_only: bool = True,
    ) -> None:
        """Learn what a step took. draft_s: making and choosing drafts; step_s: all the rest.

        num_seqs, num_rows: of the step as it ran; it is plain if they are equal.
        """
        self._now += 1
        figures = self._figures
        num_plain = max(0, self._num_decoding - self._num_verified)
        figures.num_plain += num_plain
        figures.draft_s += draft_s
        if self._num_asked:
            ask_s = max(0.0, draft_s - self._model_s) / self._num_asked
            self._ask_s += (min(ask_s, 4 * self._ask_s) - self._ask_s) / 16
        if is_decode_only:
            figures.num_emitted += num_emitted
            figures.busy_s += step_s + draft_s
            self._learn_cost(num_seqs, num_rows, num_emitted, step_s)
        else:
            figures.num_emitted += num_plain + self._num_verified_tokens
        self._verdicts.refresh()
        self._begin()

    def forget(self, sequence_id: int) -> None:
        """Drop what is known of a sequence that has ended."""
        self._states.pop(sequence_id, None)

    def renew_model(self) -> None:
        """Believe the model drafter anew: another head has been loaded."""
        for source in MODEL_SOURCES:
            self._verdicts.calibration.renew(source)
        self._model = ModelUse(self._config.max_depth, self._config.max_draft_tokens)

    def figures(self) -> Figures:
        """Return the sums since the start."""
        self._figures.num_drifts = self._verdicts.drift.num_drifts
        return self._figures

    # ---- inside

    def _state(self, sequence_id: int) -> RequestState:
        state = self._states.get(sequence_id)
        if state is None:
            state = self._states[sequence_id] = RequestState(self._now)
        return state

    def _learn_cost(self, num_seqs: int, num_rows: int, num_emitted: int, step_s: float) -> None:
        costs = self._costs
        costs.observe(num_seqs, num_rows, step_s)
        plain_s = num_emitted * costs.plain_s(num_seqs) / num_seqs
        self._figures.plain_s += plain_s
        seconds = costs.step_s(num_seqs, num_rows) + self._planned_s
        self._trials.end(step_s=seconds, loss_s=seconds - plain_s)
        tokens_before, seconds_before = self._recent
        self._recent = (
            tokens_before * _RATE_KEPT + num_emitted,
            seconds_before * _RATE_KEPT + seconds,
        )
        if num_rows == num_seqs:
            self._last_plain = self._now

    def _gather(
        self, sequence_ids: Sequence[int], trees: Sequence[Sequence[DraftTree]]
    ) -> StepDrafts:
        merged = []
        for sequence_id, drafts in zip(sequence_ids, trees, strict=True):
            state = self._state(sequence_id)
            state.review(self._now)
            some = [tree for tree in drafts if tree.token_ids]
            merged.append(merge_drafts(some, [self._paths(state, tree) for tree in some]))
        return StepDrafts(merged, _FLOOR if self._config.is_adaptive else 0.0)

    def _paths(self, state: RequestState, tree: DraftTree) -> list[float]:
        known = self._known.get(id(tree))
        if known is None:
            known = self._verdicts.calibration.path_probabilities(tree, state.ratios)
            self._known[id(tree)] = known
            if tree.sources[0] in MODEL_SOURCES:
                width = self._plan.width if self._plan is not None else 1
                state.promised(*self._model.promised(width, *levels_of(tree, known)))
        return known

    def _num_worth(
        self, drafts: StepDrafts, num_seqs: int, num_other_rows: int, max_rows: int
    ) -> int:
        """Return how many nodes give the most tokens a second; 0: none do, beside plain."""
        extra_s = self._planned_s + num_other_rows * self._costs.other_row_s
        best = drafts.pool.best(self._costs, num_seqs, max_nodes=max_rows, extra_s=extra_s)
        if best is None:
            return 0
        plain = num_seqs / (self._costs.plain_s(num_seqs) + extra_s)
        margin = 1.0 if self._is_drafting else MARGIN
        return best.num_nodes if best.tokens_per_s > margin * plain else 0

    def _plan_model(
        self,
        sequence_ids: Sequence[int],
        trees: Sequence[Sequence[DraftTree]],
        able: Sequence[int],
        num_other_rows: int,
    ) -> ModelPlan | None:
        self._drafts = self._gather(sequence_ids, trees)
        outlook = self._drafts.outlook(self._costs, num_other_rows * self._costs.other_row_s)
        places = {sequence_id: place for place, sequence_id in enumerate(sequence_ids)}
        ratios = [(places[i], self._state(i).model_ratio) for i in able]
        found = self._model.plan(self._costs, outlook, ratios, now=self._now)
        if found is None:
            return None
        chosen, depth, width = found
        nodes = min(width * depth, self._config.max_draft_tokens)
        return ModelPlan(tuple(sequence_ids[i] for i in chosen), depth, width, nodes)

    def _plan_trial(self, num_seqs: int, able: Sequence[int]) -> ModelPlan | None:
        """Ask the model for one sequence, the most promising, if the allowance covers it."""
        costs, depth = self._costs, min(_TRIAL_DEPTH, self._config.max_depth)
        loss_s = costs.step_s(num_seqs, num_seqs + depth) - costs.plain_s(num_seqs)
        loss_s = max(loss_s, 0.0) + self._model.drafting_s(costs, 1, depth)
        if not self._trials.model.affords(loss_s):
            return None
        self._trials.begin(self._trials.model)
        self._model.look_again()
        best = max(able, key=lambda i: self._state(i).model_ratio)
        return ModelPlan((best,), depth, 1, depth, is_trial=True)

    def _choose_trial(
        self, sequence_ids: Sequence[int], drafts: StepDrafts, max_rows: int
    ) -> list[DraftTree | None]:
        """Verify the beginning of the likeliest draft though it does not seem to pay."""
        out: list[DraftTree | None] = [None] * len(sequence_ids)
        is_model = self._plan is not None and self._plan.is_trial
        chosen = self._plan.sequence_ids if is_model and self._plan is not None else sequence_ids
        places = [i for i, one in enumerate(sequence_ids) if one in chosen]
        place = drafts.likeliest(places)
        num_nodes = min(_TRIAL_NODES, max_rows)
        if place is None or num_nodes < 1 or not self._config.is_adaptive:
            return out
        if not is_model:
            num_seqs, costs = len(sequence_ids), self._costs
            loss_s = costs.step_s(num_seqs, num_seqs + num_nodes) - costs.plain_s(num_seqs)
            if not self._trials.draft.affords(loss_s):
                return out
            self._trials.begin(self._trials.draft)
        state = self._states[sequence_ids[place]]
        out[place] = drafts.take_beginning(place, num_nodes, state)
        return out


def levels_of(tree: DraftTree, paths: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the expected accepted tokens of each level of a tree, and of its likeliest path."""
    if tree.is_chain:
        return list(paths), list(paths)
    depths = tree.depths()
    levels = [0.0] * max(depths)
    best_path = levels.copy()
    ends = [-1] + [0] * len(levels)  # the likeliest path's node at each depth
    for node, (depth, probability) in enumerate(zip(depths, paths, strict=True)):
        levels[depth - 1] += probability
        if probability > best_path[depth - 1] and tree.parents[node] == ends[depth - 1]:
            best_path[depth - 1], ends[depth] = probability, node
    return levels, best_path
