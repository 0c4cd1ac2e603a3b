"""Scores against references, and intervals that hold what they promise."""

import asyncio

import numpy as np
import pytest
import sacrebleu

from quickmatch.core.errors import ConfigError
from quickmatch.tuning.chat_rows import row_from_json
from quickmatch.tuning.evaluation import answer_rows, evaluate, score_answers
from quickmatch.tuning.metrics import (
    bleu,
    bootstrap_sums,
    exact_match,
    mean_score,
    proportion,
    rouge_l,
)
from tests.unit.tuning.conftest import make_rows

ROWS = [row_from_json(r, shown_as="row") for r in make_rows(30)]
REFERENCES = [r.answer for r in ROWS]


def test_perfect_and_hopeless_answers():
    perfect = score_answers(ROWS, REFERENCES)
    assert perfect["rouge_l"].value == perfect["exact_match"].value == 1.0
    assert perfect["bleu"].value == pytest.approx(100.0)
    hopeless = score_answers(ROWS, ["xyzzy"] * 30)
    assert hopeless["rouge_l"].value == hopeless["exact_match"].value == 0.0


def test_bleu_is_sacrebleus():
    answers = [" ".join(r.split()[:-1] or ["x"]) for r in REFERENCES]
    expected = sacrebleu.corpus_bleu(answers, [REFERENCES]).score
    found = bleu(REFERENCES, answers)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high


def test_rouge_l_by_hand():
    # LCS "a b d" = 3 of 4 and 3 tokens: precision 1, recall 3/4
    assert rouge_l(["a b c d"], ["a b d"]).value == pytest.approx(2 * 0.75 / 1.75)


def test_wilson_by_hand():
    found = proportion(95, 100)
    assert (found.low, found.high) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert mean_score([1, 0, 1, 1]) == proportion(3, 4)
    assert proportion(0, 10).low == 0.0


def test_bootstrap_covers_the_mean():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        found = mean_score(list(rng.normal(5.0, 2.0, size=60)))
        hits += found.low <= 5.0 <= found.high
    assert 88 <= hits <= 100


def test_bootstrap_repeats_and_shrinks():
    values = np.random.default_rng(1).normal(size=(400, 1))
    few = bootstrap_sums(values[:50], lambda s: s[:, 0] / 50)
    many = bootstrap_sums(values, lambda s: s[:, 0] / 400)
    assert few == bootstrap_sums(values[:50], lambda s: s[:, 0] / 50)
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_nothing_to_score():
    with pytest.raises(ConfigError, match="there are no rows"):
        exact_match([], [])
    with pytest.raises(ConfigError, match="1 answers for 2 references"):
        exact_match(["a", "b"], ["a"])


async def test_answers_keep_their_order_and_the_limit():
    running = peak = 0
    counts = []

    async def answer(messages):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001 * (len(messages[0]["content"]) % 5))
        running -= 1
        return messages[0]["content"]

    answers = await answer_rows(ROWS, answer, concurrency=3, on_answer=counts.append)
    assert answers == [r.prompt[0]["content"] for r in ROWS]
    assert peak == 3
    assert counts == list(range(1, 31))


async def test_a_failing_answer_ends_the_evaluation():
    async def answer(_):
        raise ConnectionError("down")

    with pytest.raises(ConnectionError, match="down"):
        await evaluate(ROWS, answer)


async def test_own_evaluators():
    async def answer(messages):
        return f"because {messages[0]['content']}"

    scores = await evaluate(
        ROWS,
        answer,
        evaluators={
            "starts": lambda _, text: text.startswith("because"),
            "length": lambda _, text: len(text),
        },
    )
    assert scores["starts"] == proportion(30, 30)
    assert scores["length"].low < scores["length"].value < scores["length"].high
