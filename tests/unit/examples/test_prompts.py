"""The prompt says all that a true answer needs, compactly, and reads back as it was written."""

import pytest

from examples.credit_cards.applicants import simulate
from examples.credit_cards.fields import FIELDS
from examples.credit_cards.prompts import PromptError, messages_for, read_case
from examples.credit_cards.rating import Factor, RatedApplicant, RatingModel

VALUES = (592, 41_000, 87, 4, 61, 12, 5, 3, 2, 6_500)


@pytest.fixture
def applicant() -> RatedApplicant:
    factors = (Factor(FIELDS[4], 61, -0.4), Factor(FIELDS[5], 12, 0.3), Factor(FIELDS[3], 4, -0.2))
    return RatedApplicant(values=VALUES, rating="poor", factors=factors)


def test_the_user_message_is_the_record_the_rating_and_the_factors(
    applicant: RatedApplicant,
) -> None:
    system, user = messages_for(applicant)
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].splitlines() == [
        "- credit score: 592",
        "- yearly income: $41,000",
        "- card utilisation: 87%",
        "- late payments: 4",
        "- debt ratio: 61%",
        "- account age: 12 years",
        "- recent inquiries: 5",
        "- job tenure: 3 years",
        "- existing cards: 2",
        "- requested limit: $6,500",
        "Rating: poor",
        "Main factors:",
        "- debt ratio hurt: 61%",
        "- account age helped: 12 years",
        "- late payments hurt: 4",
    ]


def test_reads_back_what_was_written() -> None:
    model = RatingModel(simulate(150, seed=1), seed=1)
    for applicant in model.rate(simulate(40, seed=2).values):
        case = read_case(messages_for(applicant))
        assert tuple(case.record[field.key] for field in FIELDS) == applicant.values
        assert case.rating == applicant.rating
        told = [(f.field, f.value, f.helped) for f in case.factors]
        assert told == [(f.field, f.value, f.helped) for f in applicant.factors]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Rating: poor", "Rating: bad", "says 'bad'; it must be poor, normal, good"),
        ("Main factors:", "Factors:", "the line 'Main factors:' is missing"),
        ("- late payments: 4\n", "", "no line '- late payments: …'; it needs all ten fields"),
        ("- debt ratio hurt: 61%", "- debt hurt: 61%", "there is no field 'debt'; there are: "),
        ("- debt ratio hurt: 61%", "- debt ratio: 61%", "the factor line says '- debt ratio: 61%'"),
        ("87%", "high", "card utilisation is 'high'; write it like '12%'"),
    ],
)
def test_a_wrong_prompt_is_refused_with_the_reason(
    applicant: RatedApplicant, old: str, new: str, reason: str
) -> None:
    messages = messages_for(applicant)
    messages[1]["content"] = messages[1]["content"].replace(old, new, 1)
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        read_case(messages)


def test_no_user_message_and_no_factor_are_refused(applicant: RatedApplicant) -> None:
    system, user = messages_for(applicant)
    with pytest.raises(PromptError, match="there is no user message"):
        read_case([system])
    head = user["content"].split("Main factors:")[0] + "Main factors:"
    with pytest.raises(PromptError, match="no factor after 'Main factors:'"):
        read_case([{"role": "user", "content": head}])
