import random
from itertools import pairwise

import pytest

from quickmatch.engine.speculation.calibration import Calibration
from quickmatch.engine.speculation.tree import DraftTree, Source

SOURCE = Source.SUFFIX_GLOBAL
EVEN = [1.0] * len(Source)


def teach(
    calibration: Calibration,
    truth: float,
    count: int,
    *,
    confidence: float = 0.8,
    feature: int = 8,
    seed: int = 0,
) -> None:
    dice = random.Random(seed)
    for _ in range(count):
        is_right = dice.random() < truth
        calibration.of(SOURCE).judge(feature, 1, confidence, is_right)
        calibration.refresh()


def chance(calibration: Calibration, confidence: float = 0.8, feature: int = 8) -> float:
    return calibration.of(SOURCE).probability(feature, 1, confidence)


def test_a_fresh_source_is_believed_at_its_word() -> None:
    # Guards: a pessimistic start, with which a new system never drafts.
    calibration = Calibration()
    for confidence in (0.2, 0.5, 0.8, 0.95):
        assert chance(calibration, confidence) == pytest.approx(confidence, abs=0.05)


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.9])
def test_converges_to_the_truth(truth: float) -> None:
    # Guards: shrinkage that never lets go of the raw confidence.
    calibration = Calibration()
    teach(calibration, truth, 300)
    assert chance(calibration) == pytest.approx(truth, abs=0.08)


def test_never_falls_with_the_confidence() -> None:
    # Guards: a lucky bucket of low confidence that overtakes a better one.
    calibration, dice = Calibration(), random.Random(1)
    for _ in range(400):
        confidence = dice.choice([0.1, 0.3, 0.6, 0.9])
        calibration.of(SOURCE).judge(8, 1, confidence, dice.random() < 0.5)
        calibration.refresh()
    values = [chance(calibration, c / 64) for c in range(1, 65)]
    assert all(b >= a - 1e-9 for a, b in pairwise(values))


def test_what_was_never_seen_leans_on_what_was() -> None:
    # Guards: every feature learns from nothing, which costs failures again and again.
    calibration = Calibration()
    teach(calibration, 0.1, 300, feature=8)
    assert chance(calibration, feature=32) < 0.4


def test_features_are_told_apart() -> None:
    # Guards: long matches judged by the short ones.
    calibration = Calibration()
    for seed in range(40):
        teach(calibration, 0.1, 4, feature=2, seed=seed)
        teach(calibration, 0.95, 4, feature=40, seed=seed)
    assert chance(calibration, feature=2) < 0.3
    assert chance(calibration, feature=40) > 0.8


def test_sources_are_told_apart() -> None:
    # Guards: a bad suffix index that switches the head off.
    calibration = Calibration()
    teach(calibration, 0.0, 200)
    assert calibration.of(Source.HEAD).probability(0, 1, 0.8) > 0.7


def test_old_evidence_fades() -> None:
    # Guards: counts without a bound, by which a change is never noticed.
    calibration = Calibration()
    teach(calibration, 0.95, 2000)
    teach(calibration, 0.1, 120, seed=1)
    assert chance(calibration) < 0.4


def test_doubt_makes_it_learn_again_at_once() -> None:
    # Guards: softening that changes nothing.
    doubting, sure = Calibration(), Calibration()
    for calibration in (doubting, sure):
        teach(calibration, 0.95, 500)
    doubting.of(SOURCE).soften()
    assert chance(doubting) > 0.85  # the estimate stays, its weight does not
    for calibration in (doubting, sure):
        teach(calibration, 0.0, 10)
    assert chance(doubting) < 0.6 < 0.8 < chance(sure)


def test_renewed_source_forgets() -> None:
    # Guards: a new head judged by the old one's failures.
    calibration = Calibration()
    teach(calibration, 0.0, 200)
    calibration.renew(SOURCE)
    assert chance(calibration) > 0.7


def test_path_probabilities_are_products_below_their_parents() -> None:
    # Guards: the quick ways for chains and for single sources differ from the general one.
    calibration = Calibration()
    teach(calibration, 0.7, 100)
    chain = DraftTree.chain(range(6), [0.9, 0.8, 1.0, 0.7, 0.9, 0.5], SOURCE, 8)
    bushy = DraftTree()
    for token_id, parent in ((1, -1), (2, 0), (3, -1), (4, 1), (5, 1)):
        bushy.add(token_id, parent, 0.6 + token_id / 20, SOURCE, 8)
    mixed = bushy.keep(range(5))
    mixed.sources[3], mixed.features[4] = Source.HEAD, 2
    for tree in (chain, bushy, mixed):
        for ratio in (1.0, 0.5, 2.0):
            paths = calibration.path_probabilities(tree, [ratio] * len(Source))
            for node, parent in enumerate(tree.parents):
                depth = len(tree.path(node))
                single = calibration.of(tree.sources[node]).probability(
                    tree.features[node], depth, tree.confidences[node]
                )
                above = 1.0 if parent < 0 else paths[parent]
                assert paths[node] == pytest.approx(above * min(single * ratio, 0.985))
                assert paths[node] < above
    assert calibration.path_probabilities(DraftTree(), EVEN) == []


def test_chains_take_a_short_way_down_to_the_floor() -> None:
    # Guards: the quick way of the usual draft gives other numbers than the general one.
    calibration = Calibration()
    teach(calibration, 0.7, 100)
    chain = DraftTree.chain(range(6), [0.9, 0.8, 1.0, 0.7, 0.9, 0.5], SOURCE, 8)
    for ratio in (0.5, 1.0, 2.0):
        ratios = [ratio] * len(Source)
        full = calibration.path_probabilities(chain, ratios)
        assert calibration.chain_probabilities(chain, ratios, 0.0) == pytest.approx(full)
        short = calibration.chain_probabilities(chain, ratios, 0.3)
        assert short == pytest.approx([p for p in full if p >= 0.3])
    chain.sources[2] = Source.HEAD
    assert calibration.chain_probabilities(chain, EVEN, 0.0) is None
