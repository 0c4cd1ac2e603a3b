"""The controller against an oracle, in a simulated engine whose chances and costs are known."""

import pytest

from quickmatch.core.errors import ConfigError
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.controller import Controller
from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.unit.engine.speculation.simulation import (
    Simulation,
    StepCost,
    Tally,
    Text,
    best_rate,
    cpu_cost,
)

SUFFIX, HEAD = Source.SUFFIX_LOCAL, Source.HEAD
STEPS = {1: 1500, 8: 500, 32: 200}


def run(texts: list[Text], *, seeds: int = 2, cost: StepCost = cpu_cost) -> tuple[float, float]:
    """Return the tokens a second beside the oracle's and beside plain decoding."""
    total = Tally()
    for seed in range(seeds):
        tally = Simulation(texts, seed=seed, cost=cost).run(STEPS.get(len(texts), 500))
        total.tokens += tally.tokens
        total.seconds += tally.seconds
    plain = len(texts) / cost(len(texts), len(texts))
    return total.rate / best_rate(texts, cost=cost), total.rate / plain


@pytest.mark.parametrize("num_seqs", [1, 8, 32])
@pytest.mark.parametrize("chance", [0.95, 0.8, 0.6])
def test_what_can_be_drafted_runs_nearly_as_fast_as_an_oracle_has_it(
    num_seqs: int, chance: float
) -> None:
    # Guards: too few or too many drafts, by calibration, cost table or trials.
    beside_oracle, _ = run([Text(cheap=chance)] * num_seqs)
    assert beside_oracle > 0.96


@pytest.mark.parametrize("num_seqs", [1, 8])
@pytest.mark.parametrize("chance", [0.9, 0.7])
def test_a_head_is_asked_as_deep_as_pays(num_seqs: int, chance: float) -> None:
    # Guards: drafting seconds left out, or the depth stuck where it was first tried.
    beside_oracle, beside_plain = run([Text(head=chance)] * num_seqs)
    assert beside_oracle > 0.94
    assert beside_plain > 1.4


@pytest.mark.parametrize("num_seqs", [1, 8, 32])
def test_text_that_cannot_be_drafted_is_never_slower(num_seqs: int) -> None:
    # Guards: drafts, trials and questions that together cost more than one per cent.
    for text in (Text(), Text(cheap=0.0), Text(cheap=0.0, raw_cheap=0.95, head=0.0)):
        steps = 2000 // num_seqs + 400
        simulation = Simulation([text] * num_seqs)
        simulation.run(100)  # a new system tries
        tally = simulation.run(steps)
        assert tally.rate > 0.99 * num_seqs / cpu_cost(num_seqs, num_seqs)


def test_drafts_go_to_the_sequences_that_have_use_of_them() -> None:
    # Guards: the same number of drafts for each, so that one bad request slows all.
    texts = [Text(cheap=0.95 if i % 2 else 0.0) for i in range(8)]
    beside_oracle, _ = run(texts)
    assert beside_oracle > 0.965


def test_a_stair_that_only_many_drafts_climb() -> None:
    # Guards: a search that gives up since one or two drafts do not pay.
    def cost(num_seqs: int, num_rows: int) -> float:
        return 1e-3 * num_seqs if num_rows <= num_seqs else 3e-3 + 0.01e-3 * num_rows

    beside_oracle, beside_plain = run([Text(cheap=0.9)], cost=cost)
    assert beside_oracle > 0.96
    assert beside_plain > 1.8


def test_rows_too_dear_to_draft_at_all() -> None:
    # Guards: drafting for its own sake where plain decoding is the best.
    def cost(num_seqs: int, num_rows: int) -> float:
        return 1e-3 * num_seqs if num_rows <= num_seqs else 1e-3 * (num_seqs + 1.2 * num_rows)

    _, beside_plain = run([Text(cheap=0.9, head=0.8)] * 2, cost=cost)
    assert beside_plain > 0.98


@pytest.mark.parametrize("num_seqs", [1, 8])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Text(cheap=0.95), Text(cheap=0.0)),
        (Text(cheap=0.95), Text(cheap=0.4)),
        (Text(cheap=0.0), Text(cheap=0.9)),
        (Text(head=0.9), Text(head=0.1)),
        (Text(head=0.9), Text(head=0.5)),
        (Text(head=0.7, cheap=0.95), Text(head=0.7, cheap=0.0)),
        (Text(head=0.8, cheap=0.0), Text(head=0.8, cheap=0.95)),
    ],
)
def test_another_text_is_served_as_well_within_two_hundred_steps(
    num_seqs: int, before: Text, after: Text
) -> None:
    # Guards: old evidence that outlives the text it came from.
    total = Tally()
    for seed in range(2):
        simulation = Simulation([before] * num_seqs, seed=seed)
        simulation.run(500)
        simulation.texts = [after] * num_seqs
        simulation.run(200)
        tally = simulation.run(1200 // num_seqs + 100)
        total.tokens += tally.tokens
        total.seconds += tally.seconds
    assert total.rate > 0.94 * best_rate([after] * num_seqs)


@pytest.mark.parametrize("num_seqs", [1, 8])
def test_a_head_that_becomes_good_is_found(num_seqs: int) -> None:
    # Guards: a drafter that was given up stays given up.
    total = Tally()
    for seed in range(4):
        simulation = Simulation([Text(head=0.0)] * num_seqs, seed=seed)
        simulation.run(400)
        simulation.texts = [Text(head=0.8)] * num_seqs
        simulation.run(500)
        tally = simulation.run(400)
        total.tokens += tally.tokens
        total.seconds += tally.seconds
    assert total.rate > 0.93 * best_rate([Text(head=0.8)] * num_seqs)


def test_a_drafting_that_takes_in_prompts_tells_nothing_of_the_others() -> None:
    # Guards: one slow drafting, believed for ever, since by it no second one pays.
    simulation = Simulation([Text(head=0.8)])
    simulation.run(100)
    simulation.controller.renew_model()
    simulation.prompts_s = 20e-3
    simulation.run(200)
    assert simulation.prompts_s == 0.0
    assert simulation.run(400).rate > 0.93 * best_rate(simulation.texts)


def test_a_head_that_costs_more_than_it_brings_is_left_alone_beside_prompts() -> None:
    # Guards: a comparison that is never made where every step has rows of prompts, as under load.
    simulation = Simulation([Text(cheap=0.5, head=0.7)] * 8)
    simulation.run(50)
    simulation.prompt_rows, simulation.told_s = 100, 3e-3
    simulation.controller.renew_model()
    simulation.run(500)
    assert simulation.controller.leaves_model_alone


def test_a_rest_ends_beside_prompts_too() -> None:
    # Guards: speculation that sleeps through the busiest hour, in which every step has prompts.
    simulation = Simulation([Text(cheap=0.0)] * 8)
    simulation.run(300)
    assert simulation.run(100).rate > 0.99 * 8 / cpu_cost(8, 8)
    simulation.prompt_rows = 100
    assert simulation.run(200).rate > 0.98 * 8 / cpu_cost(8, 8)
    simulation.texts = [Text(cheap=0.9)] * 8
    for _ in range(8):
        simulation.controller.arrived(is_watched=False)
        simulation.run(50)
    assert simulation.run(200).rate > 0.9 * best_rate(simulation.texts)


def test_a_new_head_is_believed_at_once() -> None:
    # Guards: a swapped-in head that pays for its predecessor's failures.
    simulation = Simulation([Text(head=0.0)] * 8)
    simulation.run(300)
    simulation.texts = [Text(head=0.8)] * 8
    simulation.controller.renew_model()
    # Turns without it, to compare with, are among these steps.
    assert simulation.run(60).rate > 0.87 * best_rate(simulation.texts)


def test_suffix_and_head_together_beat_the_better_of_the_two() -> None:
    # Guards: drafts that agree or contradict each other counted as if they stood alone.
    rates = []
    for text in (Text(cheap=0.4, head=0.7), Text(cheap=0.4), Text(head=0.7)):
        tallies = [Simulation([text], seed=seed).run(1000) for seed in range(8)]
        rates.append(sum(t.tokens for t in tallies) / sum(t.seconds for t in tallies))
    assert rates[0] > max(rates[1:])


def test_the_head_is_asked_only_where_the_suffix_has_nothing() -> None:
    # Guards: a model run for requests whose copied text is drafted for nothing.
    texts = [Text(cheap=0.85, head=0.85), Text(head=0.85)] * 2
    simulation = Simulation(texts, pass_s=0.02e-3)
    simulation.run(150)
    plans = []
    wants_model = simulation.controller.wants_model

    def listen(*args: object, **kwargs: object) -> object:
        plan = wants_model(*args, **kwargs)  # type: ignore[arg-type]
        plans.append(plan)
        return plan

    simulation.controller.wants_model = listen  # type: ignore[method-assign,assignment]
    simulation.run(100)
    asked = [i for plan in plans if plan is not None for i in plan.sequence_ids]
    assert asked.count(1) + asked.count(3) > 110
    assert asked.count(0) + asked.count(2) < 20


@pytest.mark.parametrize("text", [Text(head=0.42), Text(head=0.36), Text(cheap=0.2)])
def test_near_break_even_nothing_flaps(text: Text) -> None:
    # Guards: a head in and out of use every few steps; and losses by indecision.
    simulation = Simulation([text], seed=2)
    tally = simulation.run(2000)
    assert tally.num_changes < 2000 / 8
    assert tally.rate > 0.93 * best_rate([text])
    assert tally.rate > 0.975 * 1 / cpu_cost(1, 1)


def test_outliers_and_noise_do_not_mislead() -> None:
    # Guards: means instead of medians: one stalled step, and a number of rows looks dear.
    total = Tally()
    for seed in range(3):
        simulation = Simulation([Text(cheap=0.8)] * 8, noise=0.1, outliers=0.03, seed=seed)
        tally = simulation.run(500)
        total.tokens += tally.tokens
        total.seconds += tally.seconds
    assert total.rate > 0.94 * best_rate(simulation.texts)


def test_nothing_measured_at_the_start_is_learned_by_and_by() -> None:
    # Guards: a table that must be filled before anything works.
    simulation = Simulation([Text(cheap=0.8)] * 4, measured=False)
    simulation.run(200)
    assert simulation.run(500).rate > 0.94 * best_rate(simulation.texts)


def test_not_adaptive_takes_all_there_is() -> None:
    # Guards: the arm that benchmarks compare with, decided by the controller after all.
    config = SpeculationConfig(is_adaptive=False, max_draft_tokens=20, max_depth=16)
    simulation = Simulation([Text(cheap=0.0, head=0.0)] * 2, config=config)
    tally = simulation.run(50)
    assert set(tally.num_rows) == {2 * 21}  # 16 of the suffix, 16 of the head, cut to 20


# ---- the seams


def controller(**settings: float) -> Controller:
    costs = CostTable()
    for _ in range(5):
        for num_seqs, num_rows in ((1, 1), (1, 2), (1, 8), (1, 16), (4, 4), (4, 8), (4, 32)):
            costs.observe(num_seqs, num_rows, cpu_cost(num_seqs, num_rows))
    return Controller(costs, SpeculationConfig(**settings))  # type: ignore[arg-type]


def suffix(length: int, confidence: float = 0.95, first: int = 1) -> DraftTree:
    return DraftTree.chain(range(first, first + length), [confidence] * length, SUFFIX, 16)


def test_limits_of_rows_and_of_a_sequence_hold() -> None:
    # Guards: a step over its budget; a tree larger than the operator allows.
    one = controller(max_draft_tokens=5)
    ids = [1, 2, 3, 4]
    chosen = one.choose(ids, [[suffix(12)] for _ in ids], max_rows=400)
    assert max(len(tree) for tree in chosen if tree is not None) == 5
    chosen = controller().choose(ids, [[suffix(12)] for _ in ids], max_rows=6)
    assert sum(len(tree) for tree in chosen if tree is not None) <= 6
    assert controller().choose(ids, [[suffix(12)] for _ in ids], max_rows=0) == [None] * 4


def test_who_has_no_draft_gets_none_and_unlikely_tokens_are_left_out() -> None:
    # Guards: rows for nothing; the operator's floor ignored.
    chosen = controller().choose([7, 8], [[], [suffix(8)]], max_rows=400)
    assert chosen[0] is None
    assert chosen[1] is not None
    few = controller(min_path_probability=0.8).choose([8], [[suffix(12)]], max_rows=400)[0]
    many = controller(min_path_probability=0.1).choose([8], [[suffix(12)]], max_rows=400)[0]
    assert few is not None
    assert many is not None
    assert len(few) < len(many)
    assert controller().choose([7], [[]], max_rows=400) == [None]


def test_drafts_of_one_sequence_are_merged() -> None:
    # Guards: a token that both drafters name verified twice.
    head = DraftTree.chain([1, 2, 99], [0.9, 0.9, 0.9], HEAD)
    tree = controller(min_path_probability=0.02).choose([1], [[suffix(3), head]], max_rows=9)[0]
    assert tree is not None
    assert sorted(tree.token_ids) in ([1, 2, 3, 99], [1, 2, 3])


def test_a_depth_beyond_the_tables_is_refused() -> None:
    # Guards: an index error in the engine's loop for a setting that looked harmless.
    with pytest.raises(ConfigError, match="max_depth is 5000; at most 1024"):
        controller(max_depth=5000)
    deep = DraftTree.chain(range(900), [1.0] * 900, SUFFIX, 63)
    tree = controller(max_depth=1000, max_draft_tokens=1000).choose([1], [[deep]], max_rows=999)[0]
    assert tree is not None


def test_figures_add_up() -> None:
    # Guards: /metrics that tell of other numbers than were verified, or of a speed-up that is not.
    simulation = Simulation([Text(cheap=0.9), Text(cheap=0.0), Text()], noise=0.0)
    tally = simulation.run(400)
    figures = simulation.controller.figures()
    assert figures.num_emitted == tally.tokens
    assert figures.num_verified + figures.num_plain == 3 * 400
    assert figures.num_emitted == 3 * 400 + figures.num_accepted
    assert figures.num_proposed == sum(tally.num_rows) - 3 * 400
    assert figures.busy_s == pytest.approx(tally.seconds)
    assert 0 < figures.draft_s < figures.busy_s
    speed_up = tally.rate / (3 / cpu_cost(3, 3))
    assert figures.plain_s / figures.busy_s == pytest.approx(speed_up, rel=0.05)
    assert figures.accepted[SUFFIX] == figures.num_accepted
    assert sum(figures.accepted_by_position) == figures.num_accepted


def test_telling_heads_in_a_rest_is_speculations_time() -> None:
    # Guards: a speed-up of 1 while heads that draft nothing make every step slower.
    one = controller()
    one.rested(num_seqs=2, step_s=3e-3, plain_s=2e-3, is_decode=True)
    figures = one.figures()
    assert (figures.busy_s, figures.plain_s) == (3e-3, 2e-3)


def test_a_sequence_that_ended_is_forgotten() -> None:
    # Guards: memory that grows with every request; a new one judged by an old one's record.
    simulation = Simulation([Text(cheap=0.5)] * 3)
    simulation.run(20)
    for sequence_id in range(3):
        simulation.controller.forget(sequence_id)
    simulation.controller.forget(99)
    assert simulation.controller._assessor.num_sequences == 0


def test_a_step_may_ask_for_nothing_or_be_cut_short() -> None:
    # Guards: a preempted or cancelled sequence, or a step of prompts alone, that breaks the next.
    one = controller()
    for turn in range(30):
        assert one.choose_none([1, 2]) == [None, None]
        one.stepped(num_seqs=2, num_rows=2, num_emitted=2, draft_s=0.0, step_s=2e-3)
        one.stepped(
            num_seqs=3, num_rows=300, num_emitted=1, draft_s=0.0, step_s=9e-3, is_decode_only=False
        )
        one.should_draft(turn)
        one.choose([turn], [[suffix(6)]], max_rows=40)  # and its verdict never comes
        one.stepped(num_seqs=1, num_rows=1, num_emitted=0, draft_s=1e-4, step_s=2e-3)
        one.verified(turn, None, [], [5])
    assert one.figures().num_verified == 0


def test_what_heads_take_to_be_told_is_the_models_price_and_not_the_drafts() -> None:
    # Guards: cheap drafts that seem dear because a head was told of their steps.
    tables = []
    for told_s in (0.0, 2e-3):
        costs = CostTable()
        costs.observe(2, 2, 2e-3)
        one = Controller(costs, SpeculationConfig())
        for _ in range(40):
            one.choose([1, 2], [[suffix(2)], [suffix(2)]], max_rows=40)
            one.stepped(
                num_seqs=2,
                num_rows=6,
                num_emitted=6,
                draft_s=0.0,
                step_s=3e-3 + told_s,
                told_s=told_s,
                num_told=2 if told_s else 0,
            )
        assert one.figures().busy_s == pytest.approx(40 * (3e-3 + told_s))
        tables.append(costs.step_s(2, 6))
        assert one._host.of_telling_s(2) == pytest.approx(told_s / costs.factor, rel=0.2)
    assert tables[0] == pytest.approx(tables[1])
