"""Help or harm: right in many wordings, wrong where an answer turns a factor round."""

import pytest

from examples.credit_cards.applicants import simulate
from examples.credit_cards.direction import direction_accuracy, direction_errors
from examples.credit_cards.fields import FIELDS
from examples.credit_cards.prompts import Case, NamedFactor, messages_for, read_case
from examples.credit_cards.rating import RatingModel
from examples.credit_cards.writer import write

DEBT, INCOME = FIELDS[4], FIELDS[1]
CASE = Case(
    record={field.key: 1 for field in FIELDS},
    rating="normal",
    factors=(NamedFactor(DEBT, 61, False), NamedFactor(INCOME, 54_000, True)),
)


@pytest.mark.parametrize(
    "answer",
    [
        "Your debt ratio hurt most. Your yearly income helped.",
        "Your debt ratio pulled the rating down, while your yearly income helped.",
        "What hurt most was your debt ratio, but your yearly income spoke for you.",
        "The debt ratio counts against you. On the plus side is your yearly income.",
        "Your debt ratio weighed most, and not in your favour. A strong point is your income.",
        "Your debt ratio of 61%, though, hurt. Your income is $54,000, and it helps.",
        "Your debt ratio held the rating back. Your income lifted it. To improve the rating, pay "
        "down what counts in your debt ratio.",
        "Your debt ratio hurt. Your income helped. A lower debt ratio would help.",
    ],
)
def test_right_directions_in_many_wordings(answer: str) -> None:
    assert direction_errors(CASE, answer) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Your debt ratio helped. Your income helped.", "debt ratio hurt, the answer says helped"),
        ("Your debt ratio hurt. So your income hurt too.", "yearly income helped, the answer says"),
        ("Your debt ratio hurt, but your income counted against you.", "yearly income helped"),
        (
            "Your debt ratio hurt. Your income is $54,000.",
            "yearly income helped, the answer says n",
        ),
        ("Your debt ratio hurt.", "yearly income helped, the answer says nothing"),
        ("Your income helped. Your debt ratio would help.", "debt ratio hurt, the answer says n"),
        (
            "Your debt ratio hurt. Your debt ratio is a strength. Your income helped.",
            "debt ratio hurt, the answer says hurt and helped",
        ),
    ],
)
def test_wrong_directions_fail_for_their_reason(answer: str, reason: str) -> None:
    assert any(error.startswith(reason) for error in direction_errors(CASE, answer))


def test_the_scripted_writer_is_always_right_and_its_reverse_never() -> None:
    model = RatingModel(simulate(200, seed=1), seed=1)
    for applicant in model.rate(simulate(300, seed=2).values):
        messages = messages_for(applicant)
        answer = write(messages)
        assert direction_accuracy(messages, answer) == 1.0, answer
        case = read_case(messages)
        turned = tuple(NamedFactor(f.field, f.value, not f.helped) for f in case.factors)
        wrong = direction_errors(Case(case.record, case.rating, turned), answer)
        assert len(wrong) == len(turned), answer
