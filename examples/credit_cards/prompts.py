"""What a model is given: the applicant's record, the rating, and the factors that weighed most.

The rating is never the language model's job: the rating model rates, and names the factors. The
language model puts that into words for the applicant. So everything that a true answer needs
stands in the prompt, spelled as it should be quoted:

    - credit score: 592
    - yearly income: $41,000
    …
    Rating: poor
    Main factors:
    - debt ratio hurt: 61%
    - credit score hurt: 592
    - account age helped: 12 years

`read_case` is the inverse. The scripted writer and the checks see only the messages, as a model
does, and learn of the applicant through it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.credit_cards.fields import BY_LABEL, FIELDS, RATINGS, Field
from examples.credit_cards.rating import RatedApplicant

Message = dict[str, str]

SYSTEM = (
    "Explain the card rating to the applicant in plain words. Name the rating, each main factor "
    "with its figure, whether it helped or hurt, and what to do. Use no other figures."
)
_LINE = re.compile(r"- ([a-z ]+): (.+)")
_FACTOR = re.compile(r"- ([a-z ]+) (helped|hurt): (.+)")


class PromptError(ValueError):
    """The messages are not a prompt of this application."""


@dataclass(frozen=True, slots=True)
class NamedFactor:
    """A main factor as the prompt states it."""

    field: Field
    value: int
    helped: bool

    @property
    def figure(self) -> str:
        """The value as it is written."""
        return self.field.figure(self.value)


@dataclass(frozen=True, slots=True)
class Case:
    """All that a model is told of an applicant."""

    record: Mapping[str, int]  # field key -> value
    rating: str
    factors: tuple[NamedFactor, ...]  # the one that weighed most first


def messages_for(applicant: RatedApplicant) -> list[Message]:
    """Write the messages for one applicant."""
    pairs = zip(FIELDS, applicant.values, strict=True)
    lines = [f"- {field.label}: {field.figure(value)}" for field, value in pairs]
    lines += [f"Rating: {applicant.rating}", "Main factors:"]
    for factor in applicant.factors:
        effect = "helped" if factor.helped else "hurt"
        lines.append(f"- {factor.field.label} {effect}: {factor.field.figure(factor.value)}")
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "\n".join(lines)},
    ]


def read_case(messages: Sequence[Mapping[str, Any]]) -> Case:
    """Read the last user message back. Raises PromptError with the line that is missing."""
    asked = [str(m.get("content") or "") for m in messages if m.get("role") == "user"]
    if not asked:
        raise PromptError("there is no user message; send the applicant's record as one")
    lines = asked[-1].splitlines()
    rating = next((line[8:].strip() for line in lines if line.startswith("Rating: ")), "")
    if rating not in RATINGS:
        raise PromptError(f"the line 'Rating: …' says {rating!r}; it must be {', '.join(RATINGS)}")
    if "Main factors:" not in lines:
        raise PromptError("the line 'Main factors:' is missing; it comes after the rating")
    cut = lines.index("Main factors:")
    factors = tuple(_factors(lines[cut + 1 :]))
    if not factors:
        raise PromptError("no factor after 'Main factors:'; write '- debt ratio hurt: 61%'")
    return Case(record=_record(lines[:cut]), rating=rating, factors=factors)


def _record(lines: Iterable[str]) -> dict[str, int]:
    found = {}
    for line in lines:
        if match := _LINE.fullmatch(line):
            field = _field(match[1])
            found[field.key] = field.read(match[2])
    absent = [field.label for field in FIELDS if field.key not in found]
    if absent:
        raise PromptError(f"the record has no line '- {absent[0]}: …'; it needs all ten fields")
    return found


def _factors(lines: Iterable[str]) -> Iterable[NamedFactor]:
    for line in filter(str.strip, lines):
        match = _FACTOR.fullmatch(line)
        if match is None:
            raise PromptError(f"the factor line says {line!r}; write '- debt ratio hurt: 61%'")
        field = _field(match[1])
        yield NamedFactor(field, field.read(match[3]), match[2] == "helped")


def _field(label: str) -> Field:
    if label not in BY_LABEL:
        raise PromptError(f"there is no field {label!r}; there are: {', '.join(BY_LABEL)}")
    return BY_LABEL[label]
