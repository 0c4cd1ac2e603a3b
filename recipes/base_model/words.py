"""Random words, names, numbers and records, from which the tasks are made.

Words come from the tokenizer's own vocabulary, so copying is learned over all of it. One word in
HELD_OUT_SHARE, chosen by a checksum, is never drawn for training: the probe draws only those.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer

HELD_OUT_SHARE = 8
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
UNITS = ("kg", "g", "km", "m", "cm", "hours", "minutes", "days", "years", "litres", "pages",
         "boxes", "units", "points", "GB", "mm", "months", "people")  # fmt: skip
CURRENCIES = ("$", "$", "$", "£", "€")
SYLLABLES = (
    "ba", "bel", "cor", "dan", "del", "dor", "el", "fen", "gar", "hal", "il", "jor", "ka", "kes",
    "lan", "lor", "mar", "mel", "nor", "ol", "per", "quin", "ra", "ros", "sel", "sim", "tam",
    "tor", "ul", "van", "ver", "wen", "yar", "zel", "mon", "ti", "lia", "net", "rick", "son",
)  # fmt: skip


def is_held_out(word: str) -> bool:
    """True of the words that only the probe may use."""
    return zlib.crc32(word.lower().encode()) % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Words:
    """Draws text pieces; `held_out` picks the probe's words in place of the training words."""

    whole: tuple[str, ...]  # stand alone: a token that starts with a space
    endings: tuple[str, ...]  # continue a word
    held_out: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer, held_out: bool = False) -> Words:
        whole, endings = [], []
        for token in sorted(tokenizer.get_vocab()):
            word = token.removeprefix("Ġ")
            if not (word.isascii() and word.isalpha() and word.islower() and len(word) > 2):
                continue
            if not token.startswith("Ġ"):
                endings.append(word)
            elif is_held_out(word) == held_out:
                whole.append(word)
        return cls(tuple(whole), tuple(endings), held_out)

    def word(self, rng: Random) -> str:
        """A word of the vocabulary, or one in five times one that does not exist."""
        while rng.random() < 0.2:
            made = rng.choice(self.whole) + rng.choice(self.endings)
            if is_held_out(made) == self.held_out:
                return made
        return rng.choice(self.whole)

    def phrase(self, rng: Random, most: int = 4) -> str:
        return " ".join(self.word(rng) for _ in range(rng.randint(1, most)))

    def name(self, rng: Random) -> str:
        """A proper name of one or two capitalised parts."""
        return " ".join(self._name_part(rng) for _ in range(rng.randint(1, 2)))

    def _name_part(self, rng: Random) -> str:
        if rng.random() < 0.5:
            return self.word(rng).capitalize()
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize()

    def field(self, rng: Random) -> str:
        """A field name of one to three words."""
        return " ".join(self.word(rng) for _ in range(rng.choice((1, 1, 2, 2, 2, 3))))

    def value(self, rng: Random, numbers: float = 0.6) -> str:
        """A value of any kind; `numbers` is the share of figures."""
        words = (self.phrase, self.name, self.title, code)
        return rng.choice(NUMBER_KINDS if rng.random() < numbers else words)(rng)

    def title(self, rng: Random) -> str:
        return self.phrase(rng).capitalize()

    def record(self, rng: Random, fields: int) -> dict[str, str]:
        """Distinct field names with values; one record in three holds figures only.

        Figures share ten digits, so keeping one's place in the right one is the harder copying.
        """
        record: dict[str, str] = {}
        numbers = 1.0 if rng.random() < 0.35 else 0.6
        while len(record) < fields:
            record.setdefault(self.field(rng), self.value(rng, numbers))
        return record


def digits(rng: Random, most: int = 6) -> int:
    """A whole number whose length, not size, is uniform."""
    length = rng.randint(1, most)
    return rng.randint(10 ** (length - 1), 10**length - 1)


def plain_number(rng: Random) -> str:
    return str(digits(rng))


def grouped_number(rng: Random) -> str:
    return f"{digits(rng, 7):,}"


def decimal(rng: Random) -> str:
    return f"{digits(rng, 4)}.{rng.randint(0, 99):0{rng.randint(1, 2)}d}"


def money(rng: Random) -> str:
    amount = f"{digits(rng, 7):,}" if rng.random() < 0.7 else f"{digits(rng, 4):,}.{_cents(rng)}"
    return rng.choice(CURRENCIES) + amount


def _cents(rng: Random) -> str:
    return f"{rng.randint(0, 99):02d}"


def percent(rng: Random) -> str:
    number = str(rng.randint(0, 100)) if rng.random() < 0.7 else f"{rng.uniform(0, 100):.1f}"
    return number + rng.choice(("%", "%", " %", " percent"))


def quantity(rng: Random) -> str:
    number = rng.choice((plain_number, grouped_number, decimal))(rng)
    return f"{number} {rng.choice(UNITS)}"


def date(rng: Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1800, 2040)
    if rng.random() < 0.4:
        return f"{year}-{month:02d}-{day:02d}"
    return f"{day} {MONTHS[month - 1]} {year}"


def clock(rng: Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"


def code(rng: Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 4)))
    return f"{letters}{rng.choice(('-', '', ' '))}{digits(rng, 5)}"


def ratio(rng: Random) -> str:
    whole = rng.randint(2, 90)
    return f"{rng.randint(1, whole)} of {whole}"


NUMBER_KINDS: tuple[Callable[[Random], str], ...] = (
    plain_number, plain_number, grouped_number, decimal, money, money, percent, percent,
    quantity, quantity, date, clock, ratio,
)  # fmt: skip
