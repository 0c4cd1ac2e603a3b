"""The ten fields of an applicant's record: how each is called, written and read.

Everything that speaks of a field (prompt, writer, checks, report) takes its name and its figure
from here, so that a figure is spelled in one way only. That matters to a small language model: it
explains a rating by copying figures from its prompt, digit by digit.
"""

from dataclasses import dataclass
from enum import StrEnum

RATINGS = ("poor", "normal", "good")  # from worst to best; the index is the rating's value


class Unit(StrEnum):
    """How a figure is written: 712 · $54,000 · 87% · 7 years."""

    COUNT = "count"
    SCORE = "score"
    MONEY = "money"
    PERCENT = "percent"
    YEARS = "years"


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `trend` is +1 where more of it is better for a lender, -1 where it is worse."""

    key: str
    label: str
    unit: Unit
    trend: int
    meaning: str

    def figure(self, value: int) -> str:
        """Write a value as people quote it."""
        if self.unit is Unit.MONEY:
            return f"${value:,}"
        if self.unit is Unit.PERCENT:
            return f"{value}%"
        if self.unit is Unit.YEARS:
            return f"{value} year" if value == 1 else f"{value} years"
        return str(value)

    def read(self, figure: str) -> int:
        """Return the value of a written figure. Raises ValueError if there is no number."""
        digits = "".join(c for c in figure if c.isdigit())
        if not digits:
            raise ValueError(f"{self.label} is {figure!r}; write it like {self.figure(12)!r}")
        return int(digits)


FIELDS: tuple[Field, ...] = (
    Field("credit_score", "credit score", Unit.SCORE, 1, "bureau score, 300 to 850"),
    Field("income", "yearly income", Unit.MONEY, 1, "before tax"),
    Field("utilisation", "card utilisation", Unit.PERCENT, -1, "balances over card limits"),
    Field("late_payments", "late payments", Unit.COUNT, -1, "in the last two years"),
    Field("debt_ratio", "debt ratio", Unit.PERCENT, -1, "debt payments over income, monthly"),
    Field("account_age", "account age", Unit.YEARS, 1, "of the oldest account"),
    Field("inquiries", "recent inquiries", Unit.COUNT, -1, "by lenders, in six months"),
    Field("job_tenure", "job tenure", Unit.YEARS, 1, "time with the present employer"),
    Field("cards", "existing cards", Unit.COUNT, -1, "credit cards already held"),
    Field("limit", "requested limit", Unit.MONEY, -1, "of the card applied for"),
)
BY_LABEL: dict[str, Field] = {field.label: field for field in FIELDS}
