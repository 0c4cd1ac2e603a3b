"""Record -> prose: several sentences that quote names and values exactly.

Sentence shapes are filled from small sets of parts, so that there are thousands of wordings. The
records are of things of all sorts with field names drawn at random; no real application's form
is among them, so what a model scores on one before its own fine-tuning stays honest.
"""

from __future__ import annotations

from random import Random

from recipes.base_model.words import Words

THINGS = (
    "parcel", "ship", "museum", "festival", "plant", "machine", "recipe", "bridge", "village",
    "song", "lake", "engine", "garden", "school", "book", "planet", "robot", "train", "bakery",
    "match", "mountain", "camera", "boat", "theatre", "factory", "farm", "library", "tunnel",
    "storm", "forest", "airport", "painting", "clinic", "trial", "harvest", "survey", "server",
)  # fmt: skip
REQUESTS = (
    "Describe this {t} in a few sentences.", "Write a short text about this {t}.",
    "Explain this {t} in plain language.", "Turn these facts about the {t} into prose.",
    "Write a paragraph about the {t} from these details.", "Summarise the {t} below.",
    "Tell a reader about this {t}, with every figure as it stands.", "Put this {t} into words.",
)  # fmt: skip
OPENINGS = (
    "Here is what is known about this {t}.", "This {t} can be described as follows.",
    "The details of the {t} are these.", "", "", "", "",
)  # fmt: skip
SINGLE = (
    "The {k} is {v}.", "Its {k} is {v}.", "The {k} stands at {v}.", "It has a {k} of {v}.",
    "The {t} has a {k} of {v}.", "For the {k}, the record gives {v}.", "We find {v} as the {k}.",
    "{v} is given as the {k}.", "The {k} was put at {v}.", "This {t} shows a {k} of {v}.",
    "As for the {k}, it is {v}.", "The {k} of the {t} is {v}.", "The {k} of {v} is worth noting.",
    "One thing to note is the {k} of {v}.", "It also has {v} as its {k}.",
)  # fmt: skip
DOUBLE = (
    "The {k} is {v} and the {k2} is {v2}.", "With a {k} of {v}, it has a {k2} of {v2}.",
    "Its {k} is {v}, while its {k2} is {v2}.", "The {k} ({v}) and the {k2} ({v2}) are both listed.",
    "While the {k} is {v}, the {k2} comes to {v2}.",
    "Both the {k} of {v} and the {k2} of {v2} count.",
    "The {t} combines a {k} of {v} with a {k2} of {v2}.", "{v} is the {k}; {v2} is the {k2}.",
)  # fmt: skip
ENDINGS = (
    "That is all that is recorded.", "Nothing else is listed.", "These are the main facts.",
    "Together they describe the {t}.", "", "", "", "",
)  # fmt: skip
OUTCOMES = (
    "Result", "Outcome", "Verdict", "Status", "Finding", "Conclusion", "Level", "Class", "State",
)  # fmt: skip
CAUSES = (
    "Main reasons", "Main causes", "Key points", "Reasons", "Top causes", "Drivers", "Notes",
    "What mattered most", "Strongest influences",
)  # fmt: skip


def verbalise(rng: Random, words: Words) -> list[tuple[str, str]]:
    """A record and a request; the answer is prose, about all fields or about those asked for."""
    kinds = (_whole_record, _whole_record, _chosen_fields, _with_outcome, _with_outcome)
    return rng.choice(kinds)(rng, words)


def _whole_record(rng: Random, words: Words) -> list[tuple[str, str]]:
    thing = rng.choice(THINGS)
    record = words.record(rng, rng.randint(2, 8))
    prompt = _prompt(rng, thing, _listed(record))
    return [(prompt, _join(rng, thing, sentences(rng, thing, list(record.items()))))]


def _chosen_fields(rng: Random, words: Words) -> list[tuple[str, str]]:
    thing = rng.choice(THINGS)
    record = words.record(rng, rng.randint(5, 11))
    chosen = rng.sample(list(record), rng.randint(2, 4))
    named = ", ".join(chosen[:-1]) + " and " + chosen[-1]
    only = rng.choice(("Mention the {}.", "Speak only of the {}.", "Cover these: {}."))
    prompt = _prompt(rng, thing, _listed(record), only.format(named))
    pairs = [(key, record[key]) for key in chosen]
    return [(prompt, _join(rng, thing, sentences(rng, thing, pairs)))]


def _with_outcome(rng: Random, words: Words) -> list[tuple[str, str]]:
    """A record, what came of it, and the fields that led to it."""
    thing = rng.choice(THINGS)
    record = words.record(rng, rng.randint(4, 10))
    outcome, value = rng.choice(OUTCOMES), words.title(rng)
    heading = rng.choice(CAUSES)
    chosen = rng.sample(list(record), rng.randint(2, 4))
    causes = _list_lines(rng, chosen)
    prompt = _prompt(rng, thing, f"{_listed(record)}\n{outcome}: {value}\n{heading}:\n{causes}")
    first = rng.choice(
        (
            "The {o} of this {t} is {v}.", "This {t} was given the {o} {v}.",
            "For this {t} the {o} is {v}.", "{v} is the {o} of the {t}.",
        )
    ).format(o=outcome.lower(), t=thing, v=value)  # fmt: skip
    named = ", the ".join(chosen[:-1]) + " and the " + chosen[-1]
    why = rng.choice(
        (
            "This rests on the {c}.", "The {h} are the {c}.", "It follows from the {c}.",
            "What led to it was the {c}.", "It was decided by the {c}.",
        )
    ).format(h=heading.lower(), c=named)  # fmt: skip
    pairs = [(key, record[key]) for key in chosen]
    body = sentences(rng, thing, pairs)
    return [(prompt, " ".join([first, why, *body]))]


def _list_lines(rng: Random, items: list[str]) -> str:
    if rng.random() < 0.5:
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    return "\n".join(f"- {item}" for item in items)


def sentences(rng: Random, thing: str, pairs: list[tuple[str, str]]) -> list[str]:
    """One or two fields a sentence, in the order given."""
    left, made = list(pairs), []
    while left:
        (key, value), left = left[0], left[1:]
        if left and rng.random() < 0.4:
            (key2, value2), left = left[0], left[1:]
            shape = rng.choice(DOUBLE)
            said = shape.format(t=thing, k=key, v=value, k2=key2, v2=value2)
        else:
            said = rng.choice(SINGLE).format(t=thing, k=key, v=value)
        made.append(said[0].upper() + said[1:] if said.startswith(key) else said)
    return made


def _listed(record: dict[str, str]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in record.items())


def _prompt(rng: Random, thing: str, listed: str, more: str = "") -> str:
    request = " ".join(filter(None, (rng.choice(REQUESTS).format(t=thing), more)))
    return f"{request}\n\n{listed}" if rng.random() < 0.6 else f"{listed}\n\n{request}"


def _join(rng: Random, thing: str, body: list[str]) -> str:
    opening, ending = rng.choice(OPENINGS).format(t=thing), rng.choice(ENDINGS).format(t=thing)
    return " ".join(filter(None, (opening, *body, ending)))
