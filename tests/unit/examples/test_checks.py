"""The checks: right answers in any wording pass, wrong ones fail for the right reason."""

import pytest

from examples.credit_cards.checks import (
    fact_accuracy,
    fact_errors,
    number_accuracy,
    number_errors,
)
from examples.credit_cards.fields import FIELDS
from examples.credit_cards.prompts import Case, NamedFactor, messages_for, read_case
from examples.credit_cards.rating import Factor, RatedApplicant

VALUES = (592, 54_000, 87, 4, 61, 12, 0, 3, 2, 6_500)
RECORD = {field.key: value for field, value in zip(FIELDS, VALUES, strict=True)}


def case(rating: str, *keys: str) -> Case:
    named = tuple(
        NamedFactor(field, RECORD[key], False)
        for key in keys
        for field in FIELDS
        if field.key == key
    )
    return Case(record=RECORD, rating=rating, factors=named)


POOR = case("poor", "debt_ratio", "utilisation", "late_payments")


@pytest.mark.parametrize(
    "answer",
    [
        "Your file was rated poor. What hurt most was your debt ratio of 61%. Your card "
        "utilisation is 87% and your late payments come to 4.",
        "Poor: a debt-to-income of 61%, a credit utilization rate of 87 % and four late payments.",
        "We rate this poor because of 4 missed payments, at 87 percent card usage, with a DTI "
        "of 61%.",
        "There is good news for later, but today the rating is Poor. At 61%, your debt ratio is "
        "high; at 87%, your utilisation too. There were 4 late payments in the last 24 months.",
        "Rating: poor.\n- debt burden: 61%\n- card utilisation: 87%\n- late payments: 4",
        "Your debt ratio matters most. It stands at 61%. Your card utilisation does not help. "
        "It is 87%. Four payments made late, 4 late payments in all, complete a poor picture.",
        "A poor rating: 87% card utilisation, a 61% debt ratio and 4 late payments. Your yearly "
        "income of $54k mattered less.",
        "A poor rating, from your debt ratio (61%), card utilisation (87%) and late payments (4).",
    ],
)
def test_right_answers_in_any_wording_pass(answer: str) -> None:
    assert fact_errors(POOR, answer) == []
    assert number_errors(POOR, answer) == []


TRUE = (
    "Your file was rated poor. "
    "Your debt ratio of 61%, card utilisation of 87% and 4 late payments hurt."
)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("poor", "good", "does not name the rating poor"),
        ("poor", "good", "names the rating good"),
        ("poor", "low", "does not name the rating poor"),
        ("poor", "between poor and normal", "names the rating normal"),
        ("card utilisation of 87%", "job", "leaves out card utilisation"),
        ("4 late payments", "payments", "leaves out late payments"),
        ("card utilisation of 87%", "account age of 12 years", "names account age as a factor"),
        ("hurt.", "hurt. So did your small income of $54,000.", "names yearly income as a factor"),
        ("hurt.", "hurt. Your job tenure helped.", "names job tenure as a factor"),
    ],
)
def test_wrong_facts_fail_for_their_reason(old: str, new: str, reason: str) -> None:
    assert fact_errors(POOR, TRUE) == []
    assert reason in fact_errors(POOR, TRUE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Your debt ratio of 67% hurt.", "says debt ratio 67%, not 61%"),
        ("Your debt ratio of 87% and card utilisation of 61% hurt.", "says debt ratio 87%"),
        ("At 87%, your debt ratio hurt, and at 61%, your utilisation.", "says debt ratio 87%"),
        ("Your debt ratio is high. It stands at 87%.", "says debt ratio 87%, not 61%"),
        ("Your debt ratio is $61.", "gives debt ratio as $61"),
        ("Your yearly income of 54,000% hurt.", "gives yearly income as 54,000%"),
        ("Your yearly income of $5,400 hurt.", "says yearly income $5,400, not $54,000"),
        ("There were no late payments.", "says late payments no, not 4"),
        ("There were two late payments.", "says late payments two, not 4"),
        ("2 late payments and 4 existing cards.", "says late payments 2, not 4"),
        ("We looked at 3 things.", "quotes 3 of nothing"),
        ("Bring your card utilisation below 30%.", "says card utilisation 30%, not 87%"),
        ("Your account age of 12 months is short.", "says account age 12 months, not 12 years"),
        ("Your debt ratio is high and you were late.", "quotes no figure"),
        ("", "quotes no figure"),
        ("Your debt ratio of 6 1% hurt.", "says debt ratio 6, not 61%"),
    ],
)
def test_wrong_figures_fail_for_their_reason(answer: str, reason: str) -> None:
    assert any(error.startswith(reason) for error in number_errors(POOR, answer))


@pytest.mark.parametrize(
    "answer",
    [
        "Your yearly income of $54,000 helped.",
        "An income of 54 thousand helped, and 3 years with your employer too.",
        "No recent inquiries, 2 existing cards and 12 years of account history.",
        "You asked for little: a requested limit of $6,500.",
        "Credit score: 592; account age: 12 years; job tenure: 3 years.",
        "The age of your oldest account, 12 years, and your FICO score of 592 helped.",
        "With 0 inquiries in the past six months and 4 late payments in the last two years.",
    ],
)
def test_right_figures_of_any_field_pass(answer: str) -> None:
    assert number_errors(POOR, answer) == []


def test_a_degenerate_answer_is_wrong_in_both() -> None:
    applicant = RatedApplicant(VALUES, "poor", (Factor(FIELDS[4], 61, -0.4),))
    messages = messages_for(applicant)
    assert fact_accuracy(messages, "the the the") == 0.0
    assert number_accuracy(messages, "the the the") == 0.0
    assert fact_accuracy(messages, "Rated poor: your debt ratio is 61%.") == 1.0
    assert number_accuracy(messages, "Rated poor: your debt ratio is 61%.") == 1.0


def test_repeating_the_prompt_is_no_explanation() -> None:
    factors = (Factor(FIELDS[4], 61, -0.4), Factor(FIELDS[2], 87, -0.3))
    messages = messages_for(RatedApplicant(VALUES, "poor", factors))
    assert "names credit score as a factor" in fact_errors(
        read_case(messages), messages[1]["content"]
    )
