"""Scores with 95 % intervals.

Owns the statistics; knows no models. Proportions get Wilson intervals; everything else is a
function of sums over rows (a mean, a ratio, corpus BLEU) and gets a percentile bootstrap over
rows, seeded, so that the same answers give the same report.

Sources: Wilson 1927; Efron & Tibshirani 1993; Koehn 2004 for BLEU by bootstrap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickmatch.core.errors import ConfigError

Floats = NDArray[np.float64]
_NUM_RESAMPLES = 1000
_CHUNK_BYTES = 1 << 26  # of resampling weights held at once


@dataclass(frozen=True, slots=True)
class Score:
    """A value over n rows and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def mean_score(values: Sequence[float], *, seed: int = 0) -> Score:
    """Return the mean of one value a row; Wilson's interval where all are 0 or 1."""
    _check_rows(len(values))
    if all(v in (0, 1) for v in values):
        return proportion(round(sum(values)), len(values))
    return bootstrap_sums(np.array(values)[:, None], lambda s: s[:, 0] / len(values), seed=seed)


def proportion(num_hits: int, n: int) -> Score:
    """Return num_hits ÷ n with Wilson's interval."""
    from scipy.stats import binomtest

    _check_rows(n)
    interval = binomtest(num_hits, n).proportion_ci(0.95, method="wilson")
    return Score(num_hits / n, float(interval.low), float(interval.high), n)


def bootstrap_sums(rows: Floats, statistic: Callable[[Floats], Floats], *, seed: int = 0) -> Score:
    """Return a statistic of column sums, resampled over rows.

    rows: [n, k]. statistic: [resamples, k] sums -> [resamples].
    """
    n = len(rows)
    _check_rows(n)
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_BYTES // (8 * n))
    draws = []
    for start in range(0, _NUM_RESAMPLES, chunk):
        size = min(chunk, _NUM_RESAMPLES - start)
        counts = generator.multinomial(n, np.full(n, 1.0 / n), size=size)  # [size, n]
        draws.append(statistic(counts @ rows))
    low, high = np.percentile(np.concatenate(draws), [2.5, 97.5])
    value = float(statistic(rows.sum(axis=0, keepdims=True))[0])
    return Score(value, float(low), float(high), n)


def exact_match(references: Sequence[str], answers: Sequence[str]) -> Score:
    """Return the share of answers that equal their reference, white space at the ends aside."""
    _check_pairs(references, answers)
    hits = [r.strip() == a.strip() for r, a in zip(references, answers, strict=True)]
    return proportion(sum(hits), len(hits))


def rouge_l(references: Sequence[str], answers: Sequence[str]) -> Score:
    """Return the mean ROUGE-L F1, 0 to 1: longest common subsequence, no stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    _check_pairs(references, answers)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(references, answers, strict=True)
    return mean_score([float(scorer.score(r, a)["rougeL"].fmeasure) for r, a in pairs])


def bleu(references: Sequence[str], answers: Sequence[str]) -> Score:
    """Return corpus BLEU, 0 to 100, as sacrebleu computes it by default (13a, exp smoothing)."""
    from sacrebleu.metrics.bleu import BLEU

    _check_pairs(references, answers)
    metric = BLEU(effective_order=False)
    rows = []
    for reference, answer in zip(references, answers, strict=True):
        one = metric.corpus_score([answer], [[reference]])
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])

    def of_sums(sums: Floats) -> Floats:
        return np.array([_bleu_of_sums(BLEU, [int(v) for v in row]) for row in sums])

    return bootstrap_sums(np.array(rows, dtype=np.float64), of_sums)


def _bleu_of_sums(metric: type, sums: list[int]) -> float:
    order = (len(sums) - 2) // 2
    score = metric.compute_bleu(  # type: ignore[attr-defined]
        correct=sums[:order],
        total=sums[order : 2 * order],
        sys_len=sums[-2],
        ref_len=sums[-1],
        smooth_method="exp",
    )
    return float(score.score)


def _check_pairs(references: Sequence[str], answers: Sequence[str]) -> None:
    if len(references) != len(answers):
        raise ConfigError(f"{len(answers)} answers for {len(references)} references")
    _check_rows(len(references))


def _check_rows(n: int) -> None:
    if n == 0:
        raise ConfigError("nothing to score: there are no rows")
