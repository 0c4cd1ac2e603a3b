"""Chooses each step who drafts, how much, and which drafted tokens are verified.

It maximises expected tokens a second: calibrated path probabilities over the measured cost of the
step. It owns the decisions; what drafts are worth it asks the assessor (assessor.py). It knows no
token's meaning, no tensor and no drafter.

A step, in this order (what is not needed is left out):

    begin_step() -> bool                                  True: a rest; then rested(…) ends it
    should_draft(id) -> bool                              each sequence that could draft cheaply
    wants_model(ids, trees, able=…, num_other_rows=…)     if a model drafter is loaded
    model_drafted(num_seqs=…, depth=…, num_levels=…, seconds=…)   if it was asked
    choose(ids, trees, num_other_rows=…, max_rows=…)      or choose_none(ids) where no tree is
    verified(id, tree, accepted, token_ids, scope="")     each decoding sequence, drafted or not
    stepped(num_seqs=…, num_rows=…, num_emitted=…, draft_s=…, step_s=…, is_decode_only=…)

and arrived() at a sequence's start, forget(id) at its end, renew_model() when another head was
loaded, figures() for /metrics.

Invariant: a step for which everything is None costs what plain decoding costs, and what is spent
only to learn is on an allowance (trials.py).

Source: Θ is goodput, expected tokens over measured time, as in docs/architecture.md.
"""

from collections.abc import Callable

from quickmatch.core.errors import ConfigError
from quickmatch.engine.speculation.accounts import Accounts, StepRecord
from quickmatch.engine.speculation.assessor import Assessor, best_assessor_type
from quickmatch.engine.speculation.calibration_grid import MAX_DEPTH
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.figures import Figures
from quickmatch.engine.speculation.model_planner import ModelPlanner
from quickmatch.engine.speculation.model_use import MARGIN, ModelPlan, ModelUse
from quickmatch.engine.speculation.model_worth import ModelWorth
from quickmatch.engine.speculation.rests import Rests
from quickmatch.engine.speculation.tree import MODEL_SOURCES, Draft, DraftTree, TreeColumns
from quickmatch.engine.speculation.turns import Turns

_USUAL_BEHIND = 16  # tokens a sequence that a model takes in beside drafting; more is not timed


class Controller:
    """One engine's. Not thread-safe: it lives in the engine's loop."""

    def __init__(
        self,
        costs: CostTable,
        config: SpeculationConfig,
        *,
        assessor_type: Callable[..., Assessor] | None = None,
    ) -> None:
        """assessor_type: left out, the native one, or the plain one where that is not built."""
        if config.max_depth > MAX_DEPTH:
            raise ConfigError(f"speculation.max_depth is {config.max_depth}; at most {MAX_DEPTH}")
        self._costs = costs
        self._config = config
        floor = config.min_path_probability if config.is_adaptive else 0.0
        make = assessor_type or best_assessor_type()
        self._assessor = make(max_depth=config.max_depth, floor=floor)
        self._model = ModelUse(self._assessor.promises, config.max_depth, config.max_draft_tokens)
        self._accounts = Accounts(costs)
        self._trials, self._host = self._accounts.trials, self._accounts.host
        self._planner = ModelPlanner(
            costs, self._assessor, self._model, self._accounts, max_nodes=config.max_draft_tokens
        )
        self._worth = ModelWorth()
        self._turns = Turns()
        self._rests = Rests()
        self._now = 0  # steps
        self._num_seqs = 1  # that decode, in the last step that proposed
        self._is_drafting = False  # the last step that could choose did
        self._step: StepRecord | None = None  # None: nothing has been asked in this step yet

    # ---- whether anybody drafts

    def begin_step(self) -> bool:
        """Return whether this step is plain, with no question asked: then only `rested` follows."""
        return self._config.is_adaptive and self._rests.begin_step()

    def arrived(self, *, is_watched: bool) -> None:
        """A new request has come. is_watched: heads are told of it, so that one can be tried."""
        self._rests.arrived(is_watched=is_watched)

    def foretold(self) -> None:
        """A new request's caller has told what to expect: draft, whatever it brought of late."""
        if self._rests.is_resting:
            self._rests.foretold()
            self._turns.renew()

    def rested(self, *, num_seqs: int, step_s: float, plain_s: float, is_decode: bool) -> None:
        """Take in a rest's step: who decodes, a token each. is_decode: no rows of prompts.

        plain_s: what it would have taken had no head been told of it.
        """
        self._accounts.rested(
            num_tokens=num_seqs, step_s=step_s, plain_s=plain_s, is_decode=is_decode
        )
        self._worth.rested(num_seqs)
        if is_decode and self._rests.is_telling:
            self._costs.observe(num_seqs, num_seqs, plain_s)

    @property
    def is_sampling(self) -> bool:
        """Whether the rest that this step belongs to is of a few steps, to time them."""
        return self._rests.is_sampling

    @property
    def uses_model(self) -> bool:
        """Whether a model drafter is in use, so that it is to be told of new sequences.

        In a rest, of one with which the rest may end.
        """
        if not self._config.is_adaptive:
            return True
        if not self._model.is_on or self.leaves_model_alone:
            return False
        return self._rests.affords_look or not self._rests.is_resting

    @property
    def leaves_model_alone(self) -> bool:
        """Whether a model drafter was found not to be worth having, so that it is told nothing."""
        return self._config.is_adaptive and self._worth.is_left_alone(self._num_seqs)

    # ---- who drafts

    def should_draft(self, sequence_id: int) -> bool:
        """Return whether to have the cheap drafters draft for a sequence in this step."""
        if not self._config.is_adaptive:
            return True
        step = self._step or self._open()
        if step.is_plain_turn or not (step.is_deciding or self._turns.is_drafting):
            return False
        wanted = self._assessor.ask(sequence_id, self._now, step.longest_pause)
        wanted = wanted or self._rests.is_looking
        step.num_asked += wanted
        return wanted

    def wants_model(
        self,
        sequence_ids: list[int],
        trees: list[list[Draft]],
        *,
        able: list[int],
        num_other_rows: int = 0,
    ) -> ModelPlan | None:
        """Return for which sequences and how deep to have a model draft; None: not in this step.

        trees: what was drafted already, by sequence; if this returns None, `choose` is to be
        given the same. able: ids of those that a model drafter can draft for.
        """
        step = self._step or self._open()
        if not able or step.is_plain_turn:
            return None
        if not self._config.is_adaptive:
            nodes = self._config.max_draft_tokens
            step.plan = ModelPlan(tuple(able), self._config.max_depth, 1, nodes)
            return step.plan
        self._check_turn(step, len(sequence_ids))
        if not self._worth.may_draft(len(sequence_ids)):
            return None
        if self._model.is_on if not step.is_deciding else self._model.is_looking(self._now):
            self._gather(step, sequence_ids, trees)
            step.plan = self._planner.best(
                sequence_ids,
                able,
                num_other_rows=num_other_rows,
                now=self._now,
                is_searching=step.is_deciding,
            )
        if step.plan is None and not self._model.is_on:
            step.plan = self._planner.trial(able, self._now)
        if step.plan is not None:
            step.planned_s = self._planner.seconds(step.plan)
        return step.plan

    def model_drafted(
        self,
        *,
        num_seqs: int,
        depth: int,
        num_levels: int,
        seconds: float,
        num_behind: int = 1,
    ) -> None:
        """Take in what drafting by the last plan took; without a plan, a drafting to time it.

        num_levels: of the deepest tree, at most depth. num_behind: tokens of all sequences that the
        model had not drafted behind before.
        """
        step = self._open()
        plan = step.plan or ModelPlan((), depth, 1, depth)
        if num_behind <= _USUAL_BEHIND * num_seqs:
            self._model.drafted(plan, num_seqs, num_levels, seconds, self._costs.factor)
        step.model_s += seconds

    # ---- what is verified

    def choose(
        self,
        sequence_ids: list[int],
        trees: list[list[Draft]],
        *,
        num_other_rows: int = 0,
        max_rows: int,
    ) -> list[DraftTree | None]:
        """Return for each sequence the tree to verify, or None; all None is the plain step.

        trees: any number of drafts a sequence. max_rows: nodes that the step has room for.
        """
        step = self._step or self._open()
        step.num_decoding = self._num_seqs = len(sequence_ids)
        self._check_turn(step, len(sequence_ids))
        if not step.is_gathered or step.plan is not None:
            self._gather(step, sequence_ids, trees)
        if self._config.is_adaptive:
            chosen = self._choose(step, num_other_rows, max_rows)
        else:
            chosen = self._assessor.choose_all(max_rows, self._config.max_draft_tokens)
        return [None if columns is None else DraftTree(*columns) for columns in chosen]

    def _choose(
        self, step: StepRecord, num_other_rows: int, max_rows: int
    ) -> list[TreeColumns | None]:
        extra_s = step.planned_s
        if num_other_rows:
            extra_s += num_other_rows * self._costs.other_row_s
        costs = self._costs.of_step(step.num_decoding, extra_s)
        num_nodes, chosen = self._assessor.choose(
            costs,
            1.0 if self._is_drafting else MARGIN,
            max_rows,
            self._config.max_draft_tokens,
            self._trials.least_gain,
        )
        self._is_drafting = num_nodes > 0
        if step.is_deciding:
            self._decided(step, num_nodes, costs.plain_s)
        return chosen

    def _decided(self, step: StepRecord, num_nodes: int, plain_s: float) -> None:
        """Tell whether drafting pays, the host's own time for it included."""
        num_seqs = step.num_decoding
        seconds = self._costs.step_s(num_seqs, num_seqs + num_nodes) + step.planned_s
        host_s = self._host.of_drafts_s
        if step.plan is not None:
            host_s += self._host.of_model_s + self._host.of_telling_s(num_seqs)
        seconds += host_s * self._costs.factor
        tokens = num_seqs + self._assessor.gain(num_nodes)
        is_worth = num_nodes > 0 and tokens / seconds > num_seqs / plain_s
        self._turns.decided(self._now, num_seqs=num_seqs, is_worth=is_worth)
        self._rests.decided(is_worth=is_worth)

    def choose_none(self, sequence_ids: list[int]) -> list[DraftTree | None]:
        """Stand in for `choose` where no tree was made."""
        step, num_seqs = self._open(), len(sequence_ids)
        step.num_decoding = self._num_seqs = num_seqs
        if self._config.is_adaptive and step.is_deciding and not step.is_plain_turn:
            self._turns.decided(self._now, num_seqs=num_seqs, is_worth=False)
            self._rests.decided(is_worth=False)
        return [None] * num_seqs

    # ---- what was learned

    def verified(
        self,
        sequence_id: int,
        tree: DraftTree | None,
        accepted: list[int],
        token_ids: list[int],
        scope: str = "",
    ) -> None:
        """Learn from the target's tokens for one sequence, whether its draft was verified or not.

        tree: what was verified; None for a plain row. accepted: its accepted nodes, in order.
        token_ids: what the target chose: those of the accepted nodes and the one after them.
        scope: what drifts are told apart by (tenant and weights).
        """
        step = self._step or self._open()
        if tree is not None:
            self._accounts.verified(step, tree, accepted, len(token_ids))
        plan = step.plan
        is_trial = plan is not None and plan.is_trial
        verdict = self._assessor.judge(
            sequence_id, token_ids, scope, step.is_deciding or is_trial, tree is None
        )
        if verdict is None:
            return
        drifted, is_right, is_right_of_model = verdict
        for source in drifted:
            self._turns.renew()
            if source in MODEL_SOURCES:
                self._model.soften()
        if tree is None or self._rests.is_looking:
            self._rests.judged(is_right=is_right)
        if plan is not None and is_trial and sequence_id in plan.sequence_ids:
            step.num_tried += 1
            step.num_right += is_right_of_model

    def stepped(
        self,
        *,
        num_seqs: int,
        num_rows: int,
        num_emitted: int,
        draft_s: float,
        step_s: float,
        told_s: float = 0.0,
        num_told: int = 0,
        is_decode_only: bool = True,
    ) -> None:
        """Learn what a step took. draft_s: making and choosing drafts; step_s: all the rest.

        num_seqs, num_rows: of the step as it ran; it is plain if they are equal. told_s: of
        step_s, what heads took that were told of num_told sequences.
        """
        step = self._step or self._open()
        num_decoded = self._accounts.stepped(
            step,
            num_seqs=num_seqs,
            num_rows=num_rows,
            num_emitted=num_emitted,
            draft_s=draft_s,
            step_s=step_s,
            told_s=told_s,
            num_told=num_told,
            is_decode_only=is_decode_only,
        )
        if self._config.is_adaptive:
            if is_decode_only:
                self._judge(num_seqs, num_decoded, draft_s + step_s, told_s)
            elif step.num_decoding:  # prompts take most of it: what its own rows usually take
                own_s = self._costs.step_s(step.num_decoding, step.num_rows)
                self._judge(step.num_decoding, num_decoded, draft_s + told_s + own_s, told_s)
        if step.is_deciding:
            self._assessor.refresh()
        self._turns.stepped(draft_s + step_s)
        self._now += 1
        self._step = None

    def _judge(self, num_seqs: int, num_tokens: int, seconds: float, told_s: float) -> None:
        """Set what a step brought beside plain decoding. seconds: of its own, without prompts."""
        rate = num_seqs / self._costs.plain_s(num_seqs)
        self._rests.stepped(
            num_seqs=num_seqs,
            num_tokens=num_tokens,
            num_plain_tokens=rate * seconds,
            is_trial=self._model.is_on and self._worth.is_on_trial(num_seqs),
        )
        if not self._worth.may_draft(num_seqs):
            seconds -= told_s
        self._worth.stepped(
            num_seqs,
            is_on=self._model.is_on,
            num_tokens=num_tokens,
            num_plain_tokens=rate * seconds,
        )

    def forget(self, sequence_id: int) -> None:
        """Drop what is known of a sequence that has ended."""
        self._assessor.forget(sequence_id)

    def renew_model(self) -> None:
        """Believe the model drafter anew: another head has been loaded."""
        for source in MODEL_SOURCES:
            self._assessor.renew(source)
        self._model.renew()
        self._worth.renew()
        self._trials.renew()
        self._turns.renew()
        self._rests.wake()

    def figures(self) -> Figures:
        """Return the sums since the start."""
        figures = self._accounts.figures
        figures.drifts = self._assessor.drifts
        return figures

    # ---- inside

    def _open(self) -> StepRecord:
        """Return the step, made at its first question."""
        if self._step is None:
            self._step = StepRecord()
            if self._config.is_adaptive:
                self._step.is_deciding = self._rests.is_looking or self._turns.is_due(self._now)
                self._step.longest_pause = self._trials.longest_pause(self._num_seqs)
                self._step.is_plain_turn = self._trials.is_plain_due(self._num_seqs)
        return self._step

    def _check_turn(self, step: StepRecord, num_seqs: int) -> None:
        """Decide this step in full if the last decision was about another number of sequences."""
        step.is_deciding = step.is_deciding or not self._turns.holds(num_seqs)

    def _gather(self, step: StepRecord, sequence_ids: list[int], trees: list[list[Draft]]) -> None:
        """Have each sequence's drafts merged, anew only those that the step's model drafted for."""
        plan = step.plan
        renewed = plan.sequence_ids if plan is not None and step.is_gathered else None
        width, depth = (1, 0) if plan is None else (plan.width, plan.depth)
        self._assessor.gather(sequence_ids, trees, self._now, width, depth, renewed)
        step.is_gathered = True
