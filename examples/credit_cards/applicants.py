"""Simulates credit card applicants: ten visible fields and, later, how each one paid.

Each applicant has a hidden *steadiness* that nobody sees on the form; it shapes income, debts and
payments together, so that the fields are correlated as they are in life. What happens later comes
from another process: present burden and steadiness, sudden jumps where debts are already high,
and bad luck (a lost job, which a long tenure makes less likely). A rating model therefore has
something to learn, and cannot be perfect.

Values are whole numbers and money is in round steps, as people fill in a form.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.credit_cards.fields import FIELDS, RATINGS

Matrix = NDArray[np.int64]
Reals = NDArray[np.float64]

RISK_CUTS = (-0.4, 1.2)  # hidden risk below the first paid well, above the second paid badly


@dataclass(frozen=True, slots=True)
class Population:
    """Applicants as a table, and how each turned out."""

    values: Matrix  # [num_applicants, 10], columns in FIELDS' order
    outcomes: Matrix  # [num_applicants], index into RATINGS

    def __len__(self) -> int:
        return len(self.values)


def simulate(num_per_outcome: int, seed: int) -> Population:
    """Return as many applicants of each later outcome, in mixed order.

    Raises ValueError if the number is below 1.
    """
    if num_per_outcome < 1:
        raise ValueError(f"num_per_outcome is {num_per_outcome}; it must be at least 1")
    rng = np.random.default_rng(seed)
    kept: list[list[Matrix]] = [[] for _ in RATINGS]
    while min(sum(map(len, rows)) for rows in kept) < num_per_outcome:
        values, outcomes = draw(max(256, num_per_outcome), rng)
        for outcome, rows in enumerate(kept):
            rows.append(values[outcomes == outcome])
    values = np.concatenate([np.concatenate(rows)[:num_per_outcome] for rows in kept])
    outcomes = np.repeat(np.arange(len(RATINGS)), num_per_outcome)
    order = rng.permutation(len(values))
    return Population(values[order], outcomes[order])


def stream(seed: int, batch: int = 512) -> Iterator[Matrix]:
    """Yield tables of applicants without end: those who knock at the door, not balanced."""
    rng = np.random.default_rng(seed)
    while True:
        yield draw(batch, rng)[0]


def draw(count: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Draw applicants as they come: their fields, [count, 10], and outcomes, [count]."""
    steadiness = rng.normal(size=count)
    columns = _fields(steadiness, rng)
    risk = _hidden_risk(columns, steadiness, rng)
    outcomes = len(RATINGS) - 1 - np.searchsorted(np.array(RISK_CUTS), risk)
    table = np.stack([columns[field.key] for field in FIELDS], axis=1)
    return table.astype(np.int64), outcomes.astype(np.int64)


def _fields(steadiness: Reals, rng: np.random.Generator) -> dict[str, Reals]:
    """The form as filled in; each column is [count]."""
    n = len(steadiness)
    income = np.exp(10.85 + 0.16 * steadiness + 0.42 * rng.normal(size=n))
    income = np.clip(_rounded(income, 1000), 14_000, 240_000)
    plenty = np.log(income / 52_000)
    tenure = np.clip(np.floor(rng.gamma(1.6, 3.2 * np.exp(0.2 * steadiness))), 0, 35)
    age = np.clip(np.floor(rng.gamma(2.4, 3.6 * np.exp(0.15 * steadiness))), 0, 40)
    usage = _percent(-0.6 - 0.85 * steadiness + 0.9 * rng.normal(size=n))
    debt = _percent(-0.75 - 0.35 * steadiness - 0.35 * plenty + 0.55 * rng.normal(size=n))
    late = np.clip(rng.poisson(np.exp(-0.1 - 0.95 * steadiness)), 0, 14)
    inquiries = np.clip(rng.poisson(np.exp(0.45 - 0.4 * steadiness)), 0, 12)
    cards = np.clip(rng.poisson(np.exp(0.75 + 0.2 * plenty)), 0, 9)
    score = 705 + 20 * steadiness - 13 * late - 0.9 * (usage - 35) + 2.5 * np.minimum(age, 18)
    score = score - 5 * inquiries + 32 * rng.normal(size=n)
    limit = 0.13 * income * np.exp(0.5 * rng.normal(size=n))
    return {
        "credit_score": np.clip(np.round(score), 380, 850),
        "income": income,
        "utilisation": usage,
        "late_payments": late,
        "debt_ratio": debt,
        "account_age": age,
        "inquiries": inquiries,
        "job_tenure": tenure,
        "cards": cards,
        "limit": np.clip(_rounded(limit, 500), 500, 40_000),
    }


def _hidden_risk(of: dict[str, Reals], steadiness: Reals, rng: np.random.Generator) -> Reals:
    """How badly the next two years go, [count]; above zero is above the usual."""
    n = len(steadiness)
    burden = 0.024 * (of["debt_ratio"] - 35) + 0.022 * (of["utilisation"] - 35)
    cliff = 0.06 * np.maximum(of["debt_ratio"] - 48, 0) + 0.02 * np.maximum(
        of["utilisation"] - 75, 0
    )
    habit = 0.80 * np.log1p(of["late_payments"]) + 0.28 * of["inquiries"] + 0.22 * of["cards"]
    cushion = 0.80 * np.log(of["income"] / 52_000) + 0.70 * np.log1p(of["account_age"])
    stretch = 5.0 * of["limit"] / of["income"]
    job_lost = rng.random(n) < 0.16 / np.sqrt(1 + of["job_tenure"])
    luck = 0.4 * rng.normal(size=n) + 1.5 * job_lost - 0.40 * np.log1p(of["job_tenure"])
    risk: Reals = burden + cliff + habit - cushion + stretch + luck
    return risk


def _rounded(values: Reals, step: int) -> Reals:
    return np.asarray(np.round(values / step) * step, dtype=np.float64)


def _percent(logits: Reals) -> Reals:
    return np.asarray(np.clip(np.round(100 / (1 + np.exp(-logits))), 1, 99), dtype=np.float64)
