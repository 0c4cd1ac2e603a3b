"""Between the engine's steps: asks the drafters, lets the controller choose, learns from verdicts.

Owns the drafters' view of every live sequence. It does not decide what a draft is worth (the
controller) nor whether it holds (verify.py). With no draft worth its cost it proposes nothing, and
the step is the plain one.

A step's proposal: the drafters that cost microseconds first (the caller's prediction, the suffix
index, what a grammar forces); then, only where the controller expects to gain by it, those that
run a model; then the controller merges and prunes all sequences' trees together.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from quickmatch.core.clock import Clock, monotonic
from quickmatch.engine.batch import Sampled
from quickmatch.engine.scheduler import Scheduler, Step
from quickmatch.engine.sequence import Sequence
from quickmatch.engine.speculation.by_adapter import ByAdapter
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.controller import Controller
from quickmatch.engine.speculation.costs import CostTable, points_to_measure
from quickmatch.engine.speculation.grafting import grafted
from quickmatch.engine.speculation.kept_rows import DraftRequest
from quickmatch.engine.speculation.prediction import PredictionDrafter
from quickmatch.engine.speculation.scopes import by_adapter
from quickmatch.engine.speculation.suffix import SuffixDrafter
from quickmatch.engine.speculation.timing import timed_steps
from quickmatch.engine.speculation.tree import Draft, DraftTree, Source
from quickmatch.engine.wire import DraftSourceStats, SpeculationStats

_FORCED = 0.9  # how likely the model is to write forced text in the tokenizer's own tokens
# Sequences of which a head that is not in use is told of one, of more each time that it showed
# nothing. Odd, and a prime in the end: calls often come by turns, and each turn is to be met.
_WATCHED_OF, _WATCHED_OF_MOST = 17, 257
_WATCHED_AFTER_CHANGE = 16  # sequences that every new head is told of...
_WATCHED_AFTER_USE = 8  # ...and one that was in use: a call that suits it may be the next


class DraftRunner(Protocol):
    """What speculation needs of the model side."""

    def draft(
        self,
        requests: list[DraftRequest],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        least_path: float,
    ) -> list[DraftTree]:
        """Have the model drafters go on with these sequences.

        least_path: paths less likely than this are not gone on from.
        """

    def can_draft(self, adapter_row: int, *, is_watched: bool) -> bool:
        """Whether a model drafter can draft for sequences of this adapter.

        is_watched: whether heads have been told of all the sequence's rows.
        """

    def forget(self, sequence_id: int) -> None:
        """Drop what the model drafters keep of a sequence."""

    def time_step(self, num_seqs: int, num_rows: int) -> float:
        """Return the seconds of a made-up step. Raises ConfigError if it does not fit."""


@dataclass(frozen=True, slots=True)
class PredictionVerdict:
    """What became of the caller's prediction in one verification."""

    num_accepted: int = 0
    num_rejected: int = 0


NO_PREDICTION = PredictionVerdict()


class Speculator:
    """One engine's. Told of every sequence's start, tokens and end."""

    def __init__(
        self,
        config: SpeculationConfig,
        runner: DraftRunner,
        scheduler: Scheduler,
        *,
        clock: Clock = monotonic,
    ) -> None:
        self._config = config
        self._runner = runner
        self._scheduler = scheduler
        self._clock = clock
        self.by_adapter = ByAdapter()
        self._costs = CostTable()
        self._controller = Controller(self._costs, config)
        self._suffix = SuffixDrafter(
            max_tokens=config.suffix_max_tokens,
            max_depth=config.max_depth,
            min_confidence=config.suffix_min_confidence,
        )
        self._has_suffix = "suffix" in config.drafters
        self._has_prediction = "prediction" in config.drafters
        self._has_grammar = "grammar" in config.drafters
        self._predictions: dict[int, PredictionDrafter] = {}
        self._num_told: dict[int, int] = {}  # output tokens that the suffix index has, by sequence
        self._num_drafted_behind: dict[int, int] = {}  # tokens, when a model drafted last
        self._num_to_watch = _WATCHED_AFTER_CHANGE
        self._num_unwatched = 0  # since the last that was watched
        self._watched_of = _WATCHED_OF

    def measure_costs(self, max_num_seqs: int) -> None:
        """Time steps of several sizes, before any sequence runs, within `calibration_s`."""
        deadline = self._clock() + self._config.calibration_s
        points = points_to_measure(max_num_seqs, self._config.max_draft_tokens)
        for num_seqs, num_rows, seconds in timed_steps(self._runner.time_step, points):
            self._costs.observe(num_seqs, num_rows, seconds)
            if self._clock() >= deadline:
                break

    # ---- a step

    def rests(self) -> bool:
        """Return whether this step is plain and costs speculation nothing; then call `rested`.

        Never while a caller waits for the count of its predicted tokens.
        """
        if self._predictions or not self._controller.begin_step():
            return False
        if not self._controller.is_sampling:  # of which a head hardly misses the rows
            self._unwatch()
        return True

    def _unwatch(self) -> None:
        for sequence in self._scheduler.running:
            sequence.is_watched = False

    def rested(self, step: Step, *, step_s: float, told_s: float) -> None:
        """Take in what a plain step of a rest took; told_s: of it, heads that were told of it."""
        spans = step.batch.spans
        num_decoding = sum(span.num_tokens == 1 for span in spans)
        self._controller.rested(
            num_seqs=num_decoding,
            step_s=step_s,
            plain_s=step_s - told_s,
            is_decode=num_decoding == len(spans),
        )

    def propose(self) -> dict[int, DraftTree]:
        """Return drafts by sequence id; none where decoding plainly is the best."""
        sequences = self._scheduler.decoding
        if not sequences:
            return {}
        if self._controller.leaves_model_alone:
            self._unwatch()
        num_other_rows = self._scheduler.num_prefill_rows
        ids = [s.id for s in sequences]
        trees = [self._cheap_trees(s) for s in sequences]
        self._ask_models(sequences, ids, trees, num_other_rows)
        if not any(trees):
            chosen: list[DraftTree | None] = self._controller.choose_none(ids)
        else:
            chosen = self._controller.choose(
                ids,
                trees,
                num_other_rows=num_other_rows,
                max_rows=self._scheduler.max_draft_rows,
            )
        return {i: tree for i, tree in zip(ids, chosen, strict=True) if tree is not None}

    def _cheap_trees(self, sequence: Sequence) -> list[Draft]:
        """Return what can be had in microseconds, cut to what may still be emitted."""
        room = _room(sequence)
        if room < 1 or not self._controller.should_draft(sequence.id):
            return []
        drafts: list[Draft] = []
        prediction = self._predictions.get(sequence.id)
        if prediction is not None:
            drafts.append(prediction.draft(min(self._config.max_depth, room)))
        if self._has_suffix:
            self._tell_suffix(sequence)
            drafts.append(self._suffix.draft(sequence.id, self._config.max_draft_tokens))
        if self._has_grammar and sequence.sample.grammar is not None:
            drafts.append(_forced(sequence, self._config.max_depth))
        cut = [_cut(draft, sequence) for draft in drafts]
        return [draft for draft in cut if len(draft)]

    def _ask_models(
        self,
        sequences: list[Sequence],
        ids: list[int],
        trees: list[list[Draft]],
        num_other_rows: int,
    ) -> None:
        """Add the trees of the model drafters, where they are expected to pay."""
        able = [
            i
            for i, s in enumerate(sequences)
            if _room(s)
            and not s.num_evicted_tokens  # the drafters keep theirs in the same places
            and self._runner.can_draft(s.adapter_row, is_watched=s.is_watched)
        ]
        if not able:
            return
        plan = self._controller.wants_model(
            ids, trees, able=[ids[i] for i in able], num_other_rows=num_other_rows
        )
        if plan is None:
            return
        if not plan.is_trial:
            self._num_to_watch = max(self._num_to_watch, _WATCHED_AFTER_USE)
        places = [i for i in able if ids[i] in plan.sequence_ids]
        num_behind = sum(self._catch_up(sequences[i]) for i in places)
        started = self._clock()
        for i in places:
            self._scheduler.reserve(sequences[i], plan.depth)
        made = self._runner.draft(
            [_request(sequences[i]) for i in places],
            depth=plan.depth,
            width=plan.width,
            max_nodes=plan.max_nodes,
            least_path=plan.least_path,
        )
        self._controller.model_drafted(
            num_seqs=len(places),
            depth=plan.depth,
            num_levels=max((max(tree.depths(), default=1) for tree in made), default=1),
            seconds=self._clock() - started,
            num_behind=num_behind,
        )
        for i, tree in zip(places, made, strict=True):
            if len(tree) and self._has_suffix and not plan.is_trial:
                tree = self._grafted(sequences[i], tree, trees[i])
            cut = _cut(tree, sequences[i])
            if len(cut):
                trees[i].append(cut)

    def _grafted(self, sequence: Sequence, tree: DraftTree, others: list[Draft]) -> DraftTree:
        self._tell_suffix(sequence)
        return grafted(
            tree,
            others,
            lambda ahead, max_nodes: self._suffix.draft(sequence.id, max_nodes, ahead),
            max_depth=self._config.max_depth,
            max_nodes=self._config.max_draft_tokens,
        )

    def _catch_up(self, sequence: Sequence) -> int:
        """Return the tokens that have come since a model drafted for a sequence."""
        num_seen = self._num_drafted_behind.get(sequence.id, 0)
        self._num_drafted_behind[sequence.id] = sequence.num_tokens
        return sequence.num_tokens - num_seen

    def stepped(
        self, step: Step, *, draft_s: float, step_s: float, told_s: float, num_emitted: int
    ) -> None:
        """Learn what a step cost; told_s: of step_s, heads that were told of it."""
        spans = step.batch.spans
        is_decode_only = all(span.tree is not None or span.num_tokens == 1 for span in spans)
        self._controller.stepped(
            num_seqs=len(spans),
            num_rows=len(step.batch.token_ids),
            num_emitted=num_emitted,
            draft_s=draft_s,
            step_s=step_s,
            told_s=told_s,
            num_told=sum(span.is_watched for span in spans) if told_s else 0,
            is_decode_only=is_decode_only,
        )

    # ---- a sequence's life

    def started(self, sequence: Sequence, prediction: list[int]) -> None:
        """A request has come."""
        self._watch(sequence)
        self._controller.arrived(is_watched=sequence.is_watched)
        if self._has_suffix:
            self._suffix.start(sequence.id, sequence.scope, sequence.sample.prompt_token_ids)
            self._num_told[sequence.id] = 0
        if prediction and self._has_prediction:
            self._predictions[sequence.id] = PredictionDrafter(prediction)
            self._controller.foretold()

    def verified(
        self, sequence: Sequence, tree: DraftTree | None, sampled: Sampled, token_ids: list[int]
    ) -> PredictionVerdict:
        """Learn what the target said. token_ids: what was emitted of it."""
        self._controller.verified(
            sequence.id, tree, sampled.accepted, sampled.token_ids, sequence.traffic
        )
        prediction = self._predictions.get(sequence.id)
        if prediction is None:
            return NO_PREDICTION
        # Whoever drafted them: the same tokens may have come from past outputs too.
        num_foretold = prediction.extend(token_ids)
        if tree is None:
            return PredictionVerdict(num_foretold)
        accepted = sampled.accepted[: len(token_ids)]
        num_accepted = sum(tree.sources[node] == Source.PREDICTION for node in accepted)
        num_proposed = sum(source == Source.PREDICTION for source in tree.sources)
        return PredictionVerdict(num_foretold, num_proposed - num_accepted)

    def ended(self, sequence: Sequence) -> None:
        """A request has ended; its output may serve later ones."""
        if self._has_suffix:
            self._tell_suffix(sequence)
            self._suffix.finish(sequence.id)
            del self._num_told[sequence.id]
        self._predictions.pop(sequence.id, None)
        self._num_drafted_behind.pop(sequence.id, None)
        self._controller.forget(sequence.id)
        self._runner.forget(sequence.id)

    def heads_changed(self, has_heads: bool) -> None:
        """Another head drafts from now on: what was measured of the old one counts no more."""
        self._scheduler.heads_changed(has_heads)
        self._controller.renew_model()
        self._num_to_watch = _WATCHED_AFTER_CHANGE
        self._watched_of = _WATCHED_OF

    def _watch(self, sequence: Sequence) -> None:
        """Say whether a head is to be told of a sequence's rows, which costs it a layer's time.

        While no head is in use it is told of one in some, so that it can show what it is worth.
        """
        if self._controller.uses_model:
            sequence.is_watched = True
            self._watched_of = _WATCHED_OF
        elif self._controller.leaves_model_alone:
            sequence.is_watched = False
        elif self._num_to_watch > 0:
            self._num_to_watch -= 1
            sequence.is_watched = True
        else:
            self._num_unwatched += 1
            sequence.is_watched = self._num_unwatched >= self._watched_of
            if sequence.is_watched:
                self._num_unwatched = 0
                self._watched_of = min(2 * self._watched_of - 1, _WATCHED_OF_MOST)

    def _tell_suffix(self, sequence: Sequence) -> None:
        """Tell the index what the sequence has emitted since it was told last."""
        output, told = sequence.sample.output_token_ids, self._num_told[sequence.id]
        if len(output) > told:
            self._suffix.extend(sequence.id, output[told:])
            self._num_told[sequence.id] = len(output)

    def remember(self, scope: str, outputs: Iterable[list[int]]) -> None:
        """Put past outputs into the index, oldest first."""
        if self._has_suffix:
            for output in outputs:
                self._suffix.remember(scope, output)

    def stats(self) -> SpeculationStats:
        """Return what drafts did since the start; heads and swaps are the engine's to add."""
        figures = self._controller.figures()
        return SpeculationStats(
            num_verified=figures.num_verified,
            num_plain=figures.num_plain,
            num_proposed=figures.num_proposed,
            num_accepted=figures.num_accepted,
            num_emitted=figures.num_emitted,
            busy_s=figures.busy_s,
            plain_s=figures.plain_s,
            draft_s=figures.draft_s,
            num_drifts=sum(figures.drifts.values()),
            adapters=self.by_adapter.stats(by_adapter(figures.drifts)),
            sources={
                source.name.lower(): DraftSourceStats(
                    num_proposed=figures.proposed[source], num_accepted=figures.accepted[source]
                )
                for source in Source
            },
            accepted_by_position=figures.accepted_by_position,
            index_tokens=self._suffix.num_tokens,
            index_bytes=self._suffix.num_bytes,
        )


def _room(sequence: Sequence) -> int:
    """Tokens that a draft may hold: the target's own token is one more."""
    return sequence.max_len - sequence.num_tokens - 1


def _cut(draft: Draft, sequence: Sequence) -> Draft:
    """Return what may be emitted of a draft: by its length, and by the sequence's grammar."""
    max_depth, grammar = _room(sequence), sequence.sample.grammar
    if grammar is None and len(draft) <= max_depth:
        return draft
    tree = DraftTree.of(draft)
    if len(tree) > max_depth and max(depths := tree.depths()) > max_depth:
        tree = tree.keep([i for i, depth in enumerate(depths) if depth <= max_depth])
    if grammar is not None:
        tree = grammar.cut(sequence.sample.output_token_ids, tree)
    return tree


def _forced(sequence: Sequence, max_tokens: int) -> DraftTree:
    """Return what the sequence's grammar leaves no choice about, as a chain."""
    assert sequence.sample.grammar is not None
    token_ids = sequence.sample.grammar.forced(sequence.sample.output_token_ids)[:max_tokens]
    return DraftTree.chain(token_ids, [_FORCED] * len(token_ids), Source.GRAMMAR)


def _request(sequence: Sequence) -> DraftRequest:
    return DraftRequest(sequence.id, sequence.token_ids, sequence.block_table, sequence.adapter_row)
