"""The books of one engine's steps: what each took and brought, and who is told of it.

Owns the record of the step that is on, and the way from a step's time to those who reckon with it:
the cost table, the allowances of trials, the host's time, the figures. It decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.figures import Figures
from quickmatch.engine.speculation.host_time import HostTime
from quickmatch.engine.speculation.model_use import ModelPlan
from quickmatch.engine.speculation.tree import DraftTree
from quickmatch.engine.speculation.trials import Trials

_MAX_DISTURBED = 2.0  # times slower than foreseen; beyond it only the step itself was unlucky


@dataclass(slots=True)
class StepRecord:
    """What belongs to one step; made anew for each."""

    is_deciding: bool = True  # in full, and learning; else by the last decision's policy
    is_plain_turn: bool = False
    longest_pause: int = 1
    num_asked: int = 0
    num_decoding: int = 0
    num_verified: int = 0
    num_verified_nodes: int = 0
    num_verified_tokens: int = 0
    num_tried: int = 0  # first tokens of a model on trial that were judged
    num_right: int = 0
    plan: ModelPlan | None = None
    planned_s: float = 0.0  # of drafting by the plan, as foreseen
    model_s: float = 0.0  # and as measured
    is_gathered: bool = False  # the assessor has the step's drafts, but for a model's

    @property
    def num_rows(self) -> int:
        """Rows of the sequences that decode, what is verified of their drafts included."""
        return self.num_decoding + self.num_verified_nodes


class Accounts:
    """One engine's."""

    def __init__(self, costs: CostTable) -> None:
        self.figures = Figures()
        self.trials = Trials(costs)
        self.host = HostTime()
        self._costs = costs
        self._has_rested = False

    def rested(self, *, num_tokens: int, step_s: float, plain_s: float, is_decode: bool) -> None:
        """Take in a rest's step; see Controller.rested."""
        figures = self.figures
        self.trials.stepped(num_tokens=num_tokens, seconds=step_s, is_plain=True)
        figures.num_plain += num_tokens
        figures.num_emitted += num_tokens
        if is_decode:
            figures.busy_s += step_s
            figures.plain_s += plain_s
            self._has_rested = True

    def verified(
        self, step: StepRecord, tree: DraftTree, accepted: Sequence[int], num_tokens: int
    ) -> None:
        """Take in a verification, by which so many tokens were chosen."""
        self.figures.add_verified(tree, accepted)
        step.num_verified += 1
        step.num_verified_nodes += len(tree.token_ids)
        step.num_verified_tokens += num_tokens

    def stepped(
        self,
        step: StepRecord,
        *,
        num_seqs: int,
        num_rows: int,
        num_emitted: int,
        draft_s: float,
        step_s: float,
        told_s: float,
        num_told: int,
        is_decode_only: bool,
    ) -> int:
        """Take in what a step took; see Controller.stepped. Return the tokens that it decoded."""
        figures, host_s = self.figures, max(0.0, draft_s - step.model_s)
        num_plain = max(0, step.num_decoding - step.num_verified)
        figures.num_plain += num_plain
        figures.draft_s += draft_s
        if step.num_asked:
            self.trials.asked(step.num_asked, host_s)
        if step.num_tried and 2 * step.num_right >= step.num_tried:
            self.trials.won()
        if is_decode_only:
            figures.num_emitted += num_emitted
            figures.busy_s += step_s + draft_s
            self._learn_cost(step, num_seqs, num_rows, num_emitted, step_s - told_s)
            if num_told:
                self.host.told(told_s / self._costs.factor, num_told)
        else:
            num_emitted = num_plain + step.num_verified_tokens
            figures.num_emitted += num_emitted
            own, seconds = step.num_rows, step_s - told_s
            if step.num_decoding and num_rows > own:
                self._costs.observe_mixed(step.num_decoding, own, num_rows - own, seconds)
        if step.num_decoding and not step.is_deciding:
            usual_s = host_s / self._costs.factor
            self.host.add(usual_s, has_drafts=step.num_asked > 0, has_plan=step.plan is not None)
        return num_emitted

    def _learn_cost(
        self, step: StepRecord, num_seqs: int, num_rows: int, num_emitted: int, step_s: float
    ) -> None:
        costs, is_plain = self._costs, num_rows == num_seqs
        if not (is_plain and self._has_rested):  # a rest's steps are plainer
            costs.observe(num_seqs, num_rows, step_s)
        foreseen_s = costs.step_s(num_seqs, num_rows)
        if is_plain:
            self.figures.plain_s += step_s
        else:  # what disturbed this step would have disturbed plain ones too
            disturbed = min(step_s / foreseen_s, _MAX_DISTURBED)
            token_s = costs.plain_s(num_seqs) / num_seqs
            self.figures.plain_s += num_emitted * token_s * disturbed
        seconds = foreseen_s + step.planned_s
        self.trials.stepped(num_tokens=num_emitted, seconds=seconds, is_plain=is_plain)
