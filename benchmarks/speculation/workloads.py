"""Workloads: what callers ask for, in a part to learn from and a part to measure on.

Three are made here with no download: explanations of credit ratings (examples/credit_cards), code
edits that carry a `prediction`, and the openings of prose. The others are chat files under
`$QUICKMATCH_BENCH_DATA/workloads/NAME/{train,test}.jsonl`, one {"messages": […]} a line, whose
last message is the answer.

Invariant: no test item's question stands in its workload's train part.
"""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speculation.code_edits import code_edits
from examples.credit_cards.applicants import simulate
from examples.credit_cards.prompts import messages_for
from examples.credit_cards.rating import RatingModel, stratified
from examples.credit_cards.writer import write

DATA_VARIABLE = "QUICKMATCH_BENCH_DATA"
CREDIT = "credit"
CREDIT_DEEP = "credit-deep"  # the same calls, to the larger target...
CREDIT_WIDE = "credit-wide"  # ...and to that one, twice as wide
MIXED = "mixed"  # a stream of all the other workloads...
MIXED_WIDE = "mixed-wide"  # ...and the same calls, to their target twice as wide
CODE_EDITS = "code_edits"
PROSE = "prose"
NOISE = "prose at temperature 2"
# What an answer may cost at most: tokens above nearly all of the workload's own answers.
MAX_TOKENS = {
    CREDIT: 160,
    CODE_EDITS: 240,
    PROSE: 128,
    "context_qa": 32,
    "gsm8k": 160,
    "intent_json": 128,
    "sql_advising": 320,
    "sql_spider": 96,
    "support_dialogue": 48,
}
_CREDIT_POOL = 1800  # applicants that are drawn at least
FILES = tuple(name for name in MAX_TOKENS if name not in (CREDIT, CODE_EDITS, PROSE))

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Item:
    """One call: its messages, the answer that is right, and what the caller says to expect."""

    workload: str
    messages: tuple[Message, ...]
    answer: str = ""
    prediction: str = ""

    @property
    def max_tokens(self) -> int:
        """The call's limit of new tokens."""
        return MAX_TOKENS[self.workload]

    def as_row(self) -> dict[str, list[Message]]:
        """Return it as a row of a chat dataset."""
        return {"messages": [*self.messages, {"role": "assistant", "content": self.answer}]}


@dataclass(frozen=True, slots=True)
class Workload:
    """Two disjoint lists of calls of one kind."""

    name: str
    train: list[Item]
    test: list[Item]


class NoData(Exception):
    """A workload's files are not there; the message names the remedy."""


def credit(num_train: int, num_test: int, seed: int) -> Workload:
    """Ratings of simulated applicants, explained by the example's scripted writer.

    The train part is the same however many test items are asked for.
    """
    model = RatingModel(simulate(1500, seed), seed)
    num_a_rating = -(-max(num_train + num_test, _CREDIT_POOL) // 3)
    applicants = stratified(model, num_a_rating, seed + 1)[: num_train + num_test]
    items = [
        Item(CREDIT, tuple(messages), write(messages)) for messages in map(messages_for, applicants)
    ]
    return Workload(CREDIT, items[:num_train], items[num_train : num_train + num_test])


def edits(num_train: int, num_test: int, seed: int) -> Workload:
    """Edits of small Python modules; the code before the edit is the prediction."""
    items = [
        Item(CODE_EDITS, _asked(edit.question), edit.answer, edit.prediction)
        for edit in code_edits(num_train + num_test, seed)
    ]
    return Workload(CODE_EDITS, items[:num_train], items[num_train:])


def from_files(name: str, num_train: int, num_test: int, seed: int) -> Workload:
    """Read one of FILES, shuffled by the seed. Raises NoData."""
    folder = data_folder() / "workloads" / name
    train, test = (_read(name, folder / f"{part}.jsonl") for part in ("train", "test"))
    known = {_question(item) for item in train}
    rng = random.Random(f"{name} {seed}")
    rng.shuffle(train)
    fresh = [item for item in test if _question(item) not in known]
    rng.shuffle(fresh)
    return Workload(name, train[:num_train], fresh[:num_test])


def data_folder() -> Path:
    """Return $QUICKMATCH_BENCH_DATA. Raises NoData if it is not set or no folder."""
    folder = Path(os.environ.get(DATA_VARIABLE, ""))
    if not os.environ.get(DATA_VARIABLE) or not folder.is_dir():
        raise NoData(f"{DATA_VARIABLE} is {str(folder)!r}; set it to the folder of workloads/")
    return folder


def prose(count: int, seed: int) -> list[str]:
    """Return openings of prose, no two alike: raw text that asks for nothing."""
    rng = random.Random(f"prose {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(rng.choice(words) for words in _OPENING)] = None
    return list(found)


_OPENING: Sequence[Sequence[str]] = (
    ("It was", "That was", "So began", "Then came", "There followed", "Thus passed"),
    ("a cold", "a long", "an idle", "a strange", "a quiet", "a stormy", "a bright", "a weary"),
    ("morning", "winter", "evening", "voyage", "summer", "journey", "night", "holiday"),
    ("in the valley,", "by the river,", "at the farm,", "near the coast,", "in the capital,"),
    ("and the old", "and the young", "and the tired", "and the proud", "and the gentle"),
    ("captain", "teacher", "widow", "gardener", "doctor", "painter", "sailor", "merchant"),
    ("remembered", "feared", "whispered", "wondered", "promised", "declared", "knew", "dreamt"),
    ("that", "how", "why"),
)


def _asked(question: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


def _question(item: Item) -> str:
    return json.dumps(item.messages)


def _read(name: str, path: Path) -> list[Item]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise NoData(f"cannot read {path.name} of {name}: {error.strerror}") from error
    rows = [json.loads(line)["messages"] for line in lines if line.strip()]
    return [Item(name, tuple(map(_without_tables, row[:-1])), row[-1]["content"]) for row in rows]


def _without_tables(message: Message) -> Message:
    """Leave a block of more than 1,500 characters of table names out of a question.

    All questions of sql_advising carry the same 1,200 tokens of them, which a small target learns
    by heart; reading them would be most of its training, and of each call.
    """
    blocks = message["content"].split("\n\n")
    kept = [b for b in blocks if not (b.startswith("Tables:") and len(b) > 1500)]
    return message | {"content": "\n\n".join(kept)}
