"""Chat tasks whose answers stand in the prompt: look up, select, quote, list, reformat.

Each task is a function (rng, words) -> turns, [(question, answer), ...], and each answer follows
from the conversation before it. Wording varies widely so that the skill, not a template, is
learned. `verbalise.py` adds the longer task of turning a record into prose.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from recipes.base_model.verbalise import verbalise
from recipes.base_model.words import Words, digits

Turns = list[tuple[str, str]]
Task = Callable[[Random, Words], Turns]

LINE_STYLES = ("{k}: {v}", "- {k}: {v}", "- {k}: {v}", "* {k}: {v}", "{k} = {v}", "{k} - {v}")
ASKS = (
    "What is the {k}?", "What is the {k}?", "{k}?", "Give me the {k}.", "Tell me the {k}.",
    "What's the {k}?", "Find the {k}.", "State the {k}.", "And the {k}?", "What {k} is given?",
)  # fmt: skip
# Answers name the field before its value: from there on, quoting the value is plain induction,
# where a bare value would take one more circuit (which line is meant?) than a CPU has time for.
SENTENCE = "The {k} is {v}."
REPLIES = (SENTENCE, SENTENCE, "{k}: {v}")


def lines_of(rng: Random, record: dict[str, str]) -> str:
    style = rng.choice(LINE_STYLES)
    return "\n".join(style.format(k=key, v=value) for key, value in record.items())


def lookup(rng: Random, words: Words) -> Turns:
    """One record, then questions for its fields; a full question gets a sentence."""
    record = words.record(rng, rng.randint(2, 12))
    keys = list(record)
    turns = []
    for key in [rng.choice(keys) for _ in range(rng.randint(2, 6))]:
        ask = rng.choice(ASKS)
        reply = SENTENCE if ask.startswith("What") else rng.choice(REPLIES)
        turns.append((ask.format(k=key), reply.format(k=key, v=record[key])))
    question = turns[0][0]
    listed = lines_of(rng, record)
    both = f"{listed}\n\n{question}" if rng.random() < 0.8 else f"{question}\n\n{listed}"
    turns[0] = (both, turns[0][1])
    return turns


def several(rng: Random, words: Words) -> Turns:
    """Two to four fields asked for at once, answered as lines."""
    record = words.record(rng, rng.randint(4, 10))
    keys = rng.sample(list(record), rng.randint(2, 4))
    asked = ", ".join(keys[:-1]) + " and " + keys[-1]
    question = rng.choice(("Give the {}.", "List these: {}.", "What are the {}?")).format(asked)
    answer = "\n".join(f"{key}: {record[key]}" for key in keys)
    return [(f"{lines_of(rng, record)}\n\n{question}", answer)]


def reverse(rng: Random, words: Words) -> Turns:
    """Which field holds this value?"""
    record = words.record(rng, rng.randint(2, 8))
    turns = []
    for key in rng.sample(list(record), min(3, len(record))):
        ask = rng.choice(("Which field is {}?", "Which field says {}?", "What is {}?"))
        turns.append((ask.format(record[key]), key))
    turns[0] = (f"{lines_of(rng, record)}\n\n{turns[0][0]}", turns[0][1])
    return turns


def extreme(rng: Random, words: Words) -> Turns:
    """Largest or smallest of a few numbers."""
    length = rng.randint(2, 5)
    numbers = {words.name(rng): digits(rng, length) for _ in range(rng.randint(2, 5))}
    word, pick = rng.choice(
        (("largest", max), ("smallest", min), ("highest", max), ("lowest", min))
    )
    value = pick(numbers.values())
    name = next(name for name, number in numbers.items() if number == value)
    listed = lines_of(rng, {name: f"{number:,}" for name, number in numbers.items()})
    answer = rng.choice((f"{name}", f"{name}, with {value:,}."))
    ask = "Which is the {}?" if answer == name else "Which is the {}, and how much is it?"
    return [(f"{listed}\n\n{ask.format(word)}", answer)]


def nth_item(rng: Random, words: Words) -> Turns:
    """First, second, last … of a list, and the item after another."""
    items = list(dict.fromkeys(words.value(rng) for _ in range(rng.randint(3, 7))))
    listed = ", ".join(items) if rng.random() < 0.3 else "\n".join(f"- {item}" for item in items)
    turns = []
    for _ in range(rng.randint(2, 4)):
        index = rng.randrange(len(items))
        if index and rng.random() < 0.5:
            turns.append((f"What comes after {items[index - 1]}?", items[index]))
            continue
        place = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")[index]
        turns.append((f"What is the {place} item?", items[index]))
    turns[0] = (f"{listed}\n\n{turns[0][0]}", turns[0][1])
    return turns


def repeat(rng: Random, words: Words) -> Turns:
    """Say the same again."""
    said = " ".join(words.value(rng) for _ in range(rng.randint(1, 8)))
    ask = rng.choice(("Repeat: {}", "Say this again: {}", "Copy this text.\n\n{}", "Echo {}"))
    return [(ask.format(said), said)]


def to_json(rng: Random, words: Words) -> Turns:
    """The record as a JSON object, or a JSON object as lines."""
    record = words.record(rng, rng.randint(2, 7))
    as_json = json.dumps(record, ensure_ascii=False)
    if rng.random() < 0.6:
        return [(f"{lines_of(rng, record)}\n\nWrite this as JSON.", as_json)]
    listed = "\n".join(f"- {key}: {value}" for key, value in record.items())
    return [(f"{as_json}\n\nWrite this as a list.", listed)]


def table_row(rng: Random, words: Words) -> Turns:
    """Look a cell up in a table."""
    columns = [words.field(rng) for _ in range(rng.randint(2, 4))]
    rows = {words.name(rng): [words.value(rng) for _ in columns] for _ in range(rng.randint(2, 5))}
    head = " | ".join(["name", *columns])
    table = "\n".join([head, *(" | ".join([name, *cells]) for name, cells in rows.items())])
    turns = []
    for _ in range(rng.randint(1, 3)):
        name, column = rng.choice(list(rows)), rng.randrange(len(columns))
        asked = f"{columns[column]} of {name}"
        turns.append((f"What is the {asked}?", f"The {asked} is {rows[name][column]}."))
    turns[0] = (f"{table}\n\n{turns[0][0]}", turns[0][1])
    return turns


def mentioned(rng: Random, words: Words) -> Turns:
    """Facts told in sentences, then a question for one of them."""
    facts = {
        words.name(rng): (words.field(rng), words.value(rng)) for _ in range(rng.randint(2, 6))
    }
    says = rng.choice(
        ("The {k} of {n} is {v}.", "{n} has a {k} of {v}.", "For {n}, the {k} is {v}.")
    )
    story = " ".join(says.format(n=name, k=key, v=value) for name, (key, value) in facts.items())
    turns = []
    for name in rng.sample(list(facts), min(3, len(facts))):
        asked = f"{facts[name][0]} of {name}"
        turns.append((f"What is the {asked}?", f"The {asked} is {facts[name][1]}."))
    turns[0] = (f"{story}\n\n{turns[0][0]}", turns[0][1])
    return turns


TASKS: dict[str, tuple[Task, float]] = {
    "lookup": (lookup, 5.0),
    "several": (several, 2.0),
    "reverse": (reverse, 1.0),
    "extreme": (extreme, 0.5),
    "nth_item": (nth_item, 1.0),
    "repeat": (repeat, 1.0),
    "to_json": (to_json, 1.0),
    "table_row": (table_row, 1.0),
    "mentioned": (mentioned, 1.5),
    "verbalise": (verbalise, 6.0),
}


def draw_task(rng: Random, words: Words, names: tuple[str, ...] = tuple(TASKS)) -> Turns:
    """One conversation of one of the named tasks, by their weights."""
    name = rng.choices(names, [TASKS[name][1] for name in names])[0]
    return TASKS[name][0](rng, words)
