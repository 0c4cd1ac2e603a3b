"""The scripted writer: a grammar, not a language model. It stands in for a teacher offline.

It reads the same messages as a model, and writes four to six sentences that are true to them: the
rating, each main factor with its figure and its direction, and what would help. Wording and order
vary widely; the same messages and seed always give the same answer.

It has habits, as writers do: in each place it prefers one or two phrasings that depend on what it
speaks of (the rating, the field), and uses the others less often. A model that learns from it can
therefore learn *when* to say what; pure dice would teach it one phrasing for all.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from examples.credit_cards import phrases
from examples.credit_cards.fields import Unit
from examples.credit_cards.prompts import Case, NamedFactor, read_case

NAME = "scripted-writer"
DESCRIPTION = "scripted writer (a grammar, not a language model)"
FAVOURITE_SHARES = (0.45, 0.2)  # how often the first and the second favourite are taken
MAX_SENTENCES = 6


def write(messages: Sequence[Mapping[str, Any]], seed: int = 0) -> str:
    """Return the explanation for a prompt. Raises PromptError if it is not one of ours."""
    case = read_case(messages)
    asked = "\n".join(str(m.get("content")) for m in messages)
    return _Letter(case, _Pen(seed, asked)).text()


_FORMS = {  # how a factor is said: where its figure is measured, where it is counted
    "figure": (phrases.MEASURED, phrases.COUNTED),
    "clause": (phrases.MEASURED_CLAUSE, phrases.COUNTED_CLAUSE),
    "tail": (phrases.MEASURED_TAIL, phrases.COUNTED_TAIL),
}


class _Pen:
    """Chooses phrasings: by dice that the prompt seeds, around favourites that the seed sets."""

    def __init__(self, seed: int, asked: str) -> None:
        self._seed = seed
        self._dice = random.Random(_number(seed, asked))

    def choose(self, place: str, options: Sequence[str], *topic: object) -> str:
        """Return one of `options`; the favourites depend on the place and the topic."""
        order = list(options)
        random.Random(_number(self._seed, place, *topic)).shuffle(order)
        roll = self._dice.random()
        for option, share in zip(order, FAVOURITE_SHARES, strict=False):
            if roll < share:
                return option
            roll -= share
        return self._dice.choice(order)

    def chance(self, share: float) -> bool:
        """Return True with that probability."""
        return self._dice.random() < share


class _Letter:
    """One answer in the making."""

    def __init__(self, case: Case, pen: _Pen) -> None:
        self._case, self._pen = case, pen

    def text(self) -> str:
        """Opening, factors, advice; a greeting or a closing where there is room."""
        body = [self._rating(), *self._factor_sentences(), self._advice()]
        if len(body) < MAX_SENTENCES and self._pen.chance(0.5):
            greetings = phrases.GREETINGS[self._case.rating]
            body.insert(0, self._pen.choose("greeting", greetings, *self._topic()))
        if len(body) < MAX_SENTENCES and self._pen.chance(0.35):
            body.append(self._pen.choose("closing", phrases.CLOSINGS, self._case.rating))
        return " ".join(_clean(sentence) for sentence in body)

    def _topic(self) -> tuple[str, str]:
        return self._case.rating, self._case.factors[0].field.key

    def _rating(self) -> str:
        rating, pen = self._case.rating, self._pen
        if pen.chance(0.15):
            return pen.choose("rating", phrases.RATING_WHOLE, rating).format(r=rating)
        subject = pen.choose("subject", phrases.RATING_SUBJECTS, *self._topic())
        verb = pen.choose("verb", phrases.RATING_VERBS, *self._topic()).format(r=rating)
        if pen.chance(0.4):
            lead = pen.choose("lead-in", phrases.RATING_LEADS, *self._topic())
            return f"{lead}{subject} {verb}."
        return f"{_capital(subject)} {verb}."

    def _factor_sentences(self) -> list[str]:
        first, *rest = self._case.factors
        key = first.field.key
        sentences = [self._with(self._pen.choose("lead", phrases.LEAD[first.helped], key), first)]
        if len(rest) == 2 and self._pen.chance(0.35):
            one, two = rest
            pairs = phrases.PAIR[one.helped, two.helped]
            chosen = self._pen.choose("pair", pairs, one.field.key)
            return [*sentences, self._with(chosen, one, two)]
        before = first
        for factor in rest:
            same = factor.helped == before.helped
            options = (phrases.SAME if same else phrases.TURN)[factor.helped]
            chosen = self._pen.choose("next", options, same, factor.field.key)
            sentences.append(self._with(chosen, factor))
            before = factor
        return sentences

    def _with(self, phrase: str, factor: NamedFactor, second: NamedFactor | None = None) -> str:
        """Fill the factors in. A phrase uses the forms that it names and ignores the others."""
        named = self._say("figure", factor)
        words = {
            "f": named,
            "F": _capital(named),
            "S": _capital(self._say("clause", factor)),
            "N": f"Your {factor.field.label}",
            "t": self._say("tail", factor),
        }
        if second is not None:
            words |= {
                "g": self._say("figure", second),
                "m": f"your {second.field.label}",
                "u": self._say("tail", second),
            }
        return phrase.format(**words)

    def _say(self, form: str, factor: NamedFactor) -> str:
        measured, counted = _FORMS[form]
        options = counted if factor.field.unit is Unit.COUNT else measured
        chosen = self._pen.choose(form, options, factor.field.key)
        return chosen.format(label=factor.field.label, figure=factor.figure)

    def _advice(self) -> str:
        hurt = [factor.field for factor in self._case.factors if not factor.helped]
        field = hurt[0] if hurt else self._case.factors[0].field
        actions = (phrases.MENDS if hurt else phrases.KEEPS)[field.key]
        frames = phrases.ADVICE if hurt else phrases.KEEP
        frame = self._pen.choose("advice", frames, field.key)
        action = self._pen.choose("action", actions, field.key)
        return frame.format(label=field.label, a=action)


def _clean(sentence: str) -> str:
    """Drop the comma that closes an aside where another mark follows."""
    return re.sub(r",(?=[.,])", "", sentence)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(*parts: object) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
