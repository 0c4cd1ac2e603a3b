"""Does an answer say of each main factor what it did, help or hurt?

An answer can name every factor with its figure and still mislead: "your job tenure of 14 years
counted against you", where it helped. So the clause around each factor is searched for words of
help and of harm. Advice ("begin with your debt ratio") holds neither, and says nothing of it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from examples.credit_cards.prompts import Case, read_case
from examples.credit_cards.reading import read_answer

_HELPED = re.compile(
    r"(?<!not )in your favou?r|\b(?:spoke|speaks|works?|worked|counts?|counted) for you\b"
    r"|\bhelp(?:ed|s)\b|\bhelp from\b|\b(?:lift|lifts|lifted|raised|raises)\b"
    r"|\bpulled (?:\w+ ){1,2}up\b|\bmatters better\b|\bstrong(?:est)?\b|\bstrengths?\b"
    r"|\bpositive(?:ly)?\b|\bbenefit(?:s|ed)?\b|\bon the plus side\b",
    re.IGNORECASE,
)
_HURT = re.compile(
    r"\bnot in your favou?r\b|\bagainst you\b|\bhurts?\b|\bpulled (?:\w+ ){1,2}down\b"
    r"|\b(?:held|holds) (?:\w+ ){1,2}back\b|\bmatters worse\b|\bweak(?:est)?\b|\bweakness(?:es)?\b"
    r"|\b(?:lowered|lowers|harmed|harms)\b|\bnegative(?:ly)?\b|\bdragged (?:\w+ ){1,2}down\b",
    re.IGNORECASE,
)
_TURN = re.compile(r",? (?:while|but|whereas|although|though|yet)\b", re.IGNORECASE)
_ADVICE = re.compile(r"\b(?:would|will|could|can|may|might) (?:also )?(?:help|hurt|lift|raise)\b")


def direction_errors(case: Case, answer: str) -> list[str]:
    """Return which main factors are said to do the wrong thing, or nothing at all."""
    said: dict[str, set[bool]] = {}
    for sentence in read_answer(answer):
        text = _ADVICE.sub(lambda found: " " * len(found[0]), sentence.text)
        ends = [found.start() for found in _TURN.finditer(text)] + [len(text)]
        for mention in sentence.mentions:
            end = next(e for e in ends if e >= mention.end or e == len(text))
            start = max([e for e in ends if e <= mention.start], default=0)
            told = _told(text[start:end]) or (_told(text) if start == 0 else set())
            said.setdefault(mention.field.key, set()).update(told)
    errors = []
    for factor in case.factors:
        told, does = said.get(factor.field.key, set()), "helped" if factor.helped else "hurt"
        if told != {factor.helped}:
            told_as = " and ".join(("hurt", "helped")[t] for t in sorted(told)) or "nothing"
            errors.append(f"{factor.field.label} {does}, the answer says {told_as}")
    return errors


def direction_accuracy(messages: Sequence[Mapping[str, Any]], answer: str) -> float:
    """1.0 if every main factor is said to have done what it did, else 0.0."""
    return 0.0 if direction_errors(read_case(messages), answer) else 1.0


def _told(clause: str) -> set[bool]:
    told = {True} if _HELPED.search(clause) else set()
    return told | ({False} if _HURT.search(clause) else set())
