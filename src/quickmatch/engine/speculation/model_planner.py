"""A model drafter's plan for a step: for whom and how deep by what pays, or one token on trial.

Stands between what the step's other drafts are worth (assessor.py) and the decisions about the
model (model_use.py). It keeps nothing of a step.
"""

from quickmatch.engine.speculation.accounts import Accounts
from quickmatch.engine.speculation.assessor import Assessor
from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.model_use import ModelPlan, ModelUse, Outlook

_TRIAL_SEQS = 8  # that a model on trial drafts for


class ModelPlanner:
    """One engine's. max_nodes: of a sequence's tree."""

    def __init__(
        self,
        costs: CostTable,
        assessor: Assessor,
        model: ModelUse,
        accounts: Accounts,
        *,
        max_nodes: int,
    ) -> None:
        self._costs = costs
        self._assessor = assessor
        self._model = model
        self._trials, self._host = accounts.trials, accounts.host
        self._max_nodes = max_nodes

    def best(
        self,
        sequence_ids: list[int],
        able: list[int],
        *,
        num_other_rows: int,
        now: int,
        is_searching: bool,
    ) -> ModelPlan | None:
        """Return the plan that pays most beside the drafts that were gathered; None: none pays.

        able: ids of those that the model can draft for. is_searching: look at other ways, too.
        """
        extra_s = num_other_rows * self._costs.other_row_s if num_other_rows else 0.0
        costs = self._costs.of_step(len(sequence_ids), extra_s)
        tokens_per_s, gains, nodes, ratios = self._assessor.outlook(costs)
        outlook = Outlook(tokens_per_s, gains, nodes, extra_s, self._assessor.gain)
        drafted_for = set(able)
        candidates = [
            (place, ratio)
            for place, (i, ratio) in enumerate(zip(sequence_ids, ratios, strict=True))
            if i in drafted_for
        ]
        beside_s = self._host.of_model_s + self._host.of_telling_s(len(sequence_ids))
        self._model.beside_s = beside_s * self._costs.factor
        found = self._model.plan(
            self._costs, outlook, candidates, now=now, is_searching=is_searching
        )
        if found is None:
            return None
        chosen, depth, width, least_path = found
        return ModelPlan(
            tuple(sequence_ids[i] for i in chosen),
            depth,
            width,
            min(width * depth, self._max_nodes),
            least_path=least_path,
        )

    def trial(self, able: list[int], now: int) -> ModelPlan | None:
        """Have the model draft a token, only to be judged, if the allowance covers it."""
        num_seqs = min(len(able), _TRIAL_SEQS)
        if not self._trials.tries_model(self._model.drafting_s(self._costs, num_seqs, 1)):
            return None
        self._model.look_again()
        first = now % len(able)  # all get their turn
        tried = (*able[first:], *able[:first])[:num_seqs]
        return ModelPlan(tried, 1, 1, 1, is_trial=True)

    def seconds(self, plan: ModelPlan) -> float:
        """Return what drafting by a plan will take."""
        num_rows = len(plan.sequence_ids) * plan.width
        return self._model.drafting_s(self._costs, num_rows, plan.depth)
