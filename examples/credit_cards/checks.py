"""Two questions to an answer: does it name the right facts, and are its figures the applicant's?

*Fact accuracy*: the answer names the applicant's rating and no other, and every main factor, and
no other field as if it had weighed. *Number accuracy*: it quotes at least one figure, and every
figure in it is the applicant's own value of the field that it is said of.

An answer is right or wrong as a whole; half right explanations are not good enough to send. Each
check returns the reasons for which an answer is wrong, so that a report can show them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from examples.credit_cards.fields import RATINGS, Field
from examples.credit_cards.prompts import Case, read_case
from examples.credit_cards.reading import Figure, Sentence, read_answer

# Words of rating that say nothing of the rating: "good news", "in good standing".
_IDIOMS = re.compile(
    r"\bgood (?:news|luck|habits?|standing|idea|start|step|sign|chance|reasons?|care|thing)\b"
    r"|\b(?:a|as) good (?:as|deal|many)\b|\bfor good\b|\bnormal (?:conditions|times)\b",
    re.IGNORECASE,
)
# A field may be named in passing where the sentence says that it did not weigh.
_MINOR = re.compile(
    r"\b(?:mattered|weighed|counted) (?:only |very )?(?:less|little)\b"
    r"|\b(?:a|only a|a very) (?:small|minor|smaller|lesser) (?:part|role|effect|weight)\b"
    r"|\b(?:no|little|hardly any) (?:effect|weight|part|influence)\b"
    r"|\bdid not (?:matter|weigh|count)\b",
    re.IGNORECASE,
)


def fact_errors(case: Case, answer: str) -> list[str]:
    """Return why the facts of an answer are wrong; an empty list if they are right."""
    errors = []
    named = _ratings_named(answer)
    if case.rating not in named:
        errors.append(f"does not name the rating {case.rating}")
    errors += [f"names the rating {rating}" for rating in named if rating != case.rating]
    sentences = read_answer(answer)
    said = {mention.field.key for s in sentences for mention in s.mentions}
    main = {factor.field.key for factor in case.factors}
    errors += [f"leaves out {f.field.label}" for f in case.factors if f.field.key not in said]
    wrong = {field.label: field for s in sentences for field in _as_main(s)}
    errors += [f"names {f.label} as a factor" for f in wrong.values() if f.key not in main]
    return errors


def number_errors(case: Case, answer: str) -> list[str]:
    """Return why the figures of an answer are wrong; an empty list if they are right."""
    figures = [figure for sentence in read_answer(answer) for figure in sentence.figures]
    if not figures:
        return ["quotes no figure"]
    return [error for figure in figures if (error := _figure_error(case, figure))]


def fact_accuracy(messages: Sequence[Mapping[str, Any]], answer: str) -> float:
    """1.0 if the facts are right, else 0.0."""
    return 0.0 if fact_errors(read_case(messages), answer) else 1.0


def number_accuracy(messages: Sequence[Mapping[str, Any]], answer: str) -> float:
    """1.0 if every figure is the applicant's own, else 0.0."""
    return 0.0 if number_errors(read_case(messages), answer) else 1.0


def _ratings_named(answer: str) -> list[str]:
    words = re.findall(r"\b(poor|normal|good)\b", _IDIOMS.sub(" ", answer), re.IGNORECASE)
    return [rating for rating in RATINGS if rating in {word.lower() for word in words}]


def _as_main(sentence: Sentence) -> list[Field]:
    if _MINOR.search(sentence.text):
        return []
    return [mention.field for mention in sentence.mentions]


def _figure_error(case: Case, figure: Figure) -> str:
    """Say what is wrong with one figure, or return an empty text."""
    field = figure.field
    if field is None:
        return f"quotes {figure.text} of nothing"
    if figure.unit is not None and figure.unit is not field.unit:
        return f"gives {field.label} as {figure.text}"
    if figure.value != case.record[field.key]:
        return f"says {field.label} {figure.text}, not {field.figure(case.record[field.key])}"
    return ""
