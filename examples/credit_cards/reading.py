"""Reads an answer: which fields each sentence names, and which field each figure belongs to.

An answer comes from any model, so wording is taken loosely: fields have other names than ours
("utilization", "debt-to-income"), counts may be spelled ("four late payments", "no late payments"),
money may be short ("$54k"), and a figure may stand before or after its field. The reading is
deterministic and has no model in it:

* a figure directly before a field's name ("4 late payments", "a 61% debt ratio") belongs to it;
* otherwise, in a sentence whose first figure comes before its first field ("At 61%, your debt
  ratio …"), a figure belongs to the next field; in all others to the field before it;
* a sentence without a field goes on speaking of the last field named ("It stands at 61%.").

Spans of time that are part of a field's meaning ("in the last two years") are no figures.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from examples.credit_cards.fields import FIELDS, Field, Unit

_NAMES: dict[str, str] = {  # field key -> how people call it, longest first where one holds another
    "credit_score": r"credit scor(?:e|ing)|bureau score|fico(?: score)?|\bscore\b",
    "income": r"(?:yearly|annual|your|gross) income|\bincome\b|\bearnings\b|\bsalary\b",
    "utilisation": r"(?:card|credit)?[ -]?utili[sz]ation(?: ratio| rate)?|card usage|credit usage",
    "late_payments": r"(?:late|missed|overdue) payments?|payments? (?:made|paid) late",
    "debt_ratio": r"debt[ -]to[ -]income(?: ratio)?|debt[ -]ratio|\bdti\b|debt load|debt burden",
    "account_age": r"account age|age of (?:your |the )?(?:oldest )?accounts?"
    r"|oldest (?:credit )?account|account history|length of (?:your )?credit history",
    "inquiries": r"(?:recent |hard |credit )*(?:inquir(?:y|ies)|enquir(?:y|ies))|credit checks?",
    "job_tenure": r"job tenure|\btenure\b|employment (?:length|history)"
    r"|\b(?:in|at|with) (?:your|the|one) (?:present |current |same )?(?:job|employer)",
    "cards": r"(?:existing|open|other) (?:credit )?cards?|cards? (?:already )?held"
    r"|number of (?:credit )?cards",
    "limit": r"(?:requested|wanted|desired) (?:credit |card )?limit|limit (?:that )?(?:you )?"
    r"(?:requested|wanted|want|asked for|request)",
}
_ORDER = ("debt_ratio", "utilisation", "limit", *_NAMES)  # those that hold another's name first
_COUNTS = {"no": 0, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_COUNTS |= {"seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12}
_FIGURE = re.compile(
    r"(?P<money>[$€£]\s?)?(?P<number>\d[\d,]*(?:\.\d+)?)\s?"
    r"(?P<unit>%|per ?cent\b|k\b|thousand\b|years?\b|months?\b|dollars\b)?",
    re.IGNORECASE,
)
_SPAN = re.compile(  # "in the last 24 months": part of what late payments and inquiries mean
    r"(?:last|past|previous|within|over|within the last)\s+(?:24|twenty-four|6|six|2|two)\s+"
    r"(?:months|years)",
    re.IGNORECASE,
)
_COUNT_BEFORE = re.compile(rf"\b(?P<count>{'|'.join(_COUNTS)})\s+(?:recorded\s+)?$", re.IGNORECASE)
_DIRECTLY = re.compile(r"\s*|(?<=years) of (?:your )?", re.IGNORECASE)
_BY_KEY = {field.key: field for field in FIELDS}


@dataclass(frozen=True, slots=True)
class Mention:
    """A field named in a sentence."""

    field: Field
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure quoted, and the field it is said of. `field` is None where nothing was named yet."""

    field: Field | None
    text: str
    value: float
    unit: Unit | None  # as written; None where the number stands bare


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of an answer, read."""

    text: str
    mentions: tuple[Mention, ...]
    figures: tuple[Figure, ...]


def read_answer(answer: str) -> list[Sentence]:
    """Read an answer sentence by sentence."""
    sentences: list[Sentence] = []
    last: Field | None = None
    for text in re.split(r"(?<=[.!?;])\s+|\n+", answer.strip()):
        if text:
            sentences.append(_read_sentence(text, last))
            last = sentences[-1].mentions[-1].field if sentences[-1].mentions else last
    return sentences


def _read_sentence(text: str, last: Field | None) -> Sentence:
    plain = _SPAN.sub(lambda span: " " * len(span[0]), text)
    mentions = tuple(sorted(_mentions(plain), key=lambda m: m.start))
    found = [f for f in _FIGURE.finditer(plain) if _is_free(f, mentions)]
    leads = bool(found and mentions and found[0].start() < mentions[0].start)
    figures = [_figure(f, _owner(plain, f, mentions, leads, last)) for f in found]
    return Sentence(text, mentions, (*_spelled(plain, mentions), *figures))


def _spelled(text: str, mentions: tuple[Mention, ...]) -> Iterator[Figure]:
    """Counts in words: "no late payments", "two recent inquiries"."""
    for mention in mentions:
        before = _COUNT_BEFORE.search(text[: mention.start])
        if before and mention.field.unit is Unit.COUNT:
            word = before["count"].lower()
            yield Figure(mention.field, word, float(_COUNTS[word]), Unit.COUNT)


def _mentions(text: str) -> Iterator[Mention]:
    taken: list[tuple[int, int]] = []
    for key in dict.fromkeys(_ORDER):
        for found in re.finditer(_NAMES[key], text, re.IGNORECASE):
            if all(found.end() <= start or found.start() >= end for start, end in taken):
                taken.append(found.span())
                yield Mention(_BY_KEY[key], *found.span())


def _is_free(figure: re.Match[str], mentions: tuple[Mention, ...]) -> bool:
    return all(figure.end() <= m.start or figure.start() >= m.end for m in mentions)


def _owner(
    text: str,
    figure: re.Match[str],
    mentions: tuple[Mention, ...],
    leads: bool,
    last: Field | None,
) -> Field | None:
    after = [m.field for m in mentions if m.start >= figure.end()]
    before = [m.field for m in mentions if m.end <= figure.start()]
    if after and _DIRECTLY.fullmatch(text, figure.end(), mentions[-len(after)].start):
        return after[0]
    if leads and after:
        return after[0]
    return before[-1] if before else last


def _figure(found: re.Match[str], field: Field | None) -> Figure:
    value = float(found["number"].rstrip(",").replace(",", ""))
    word = (found["unit"] or "").lower()
    unit = None
    if found["money"] or word in ("k", "thousand", "dollars"):
        unit = Unit.MONEY
        value *= 1000 if word in ("k", "thousand") else 1
    elif word == "%" or word.startswith("per"):
        unit = Unit.PERCENT
    elif word.startswith(("year", "month")):
        unit = Unit.YEARS
        value /= 12 if word.startswith("month") else 1
    return Figure(field, found[0].strip(), value, unit)
