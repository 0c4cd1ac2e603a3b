"""Code edits: small Python modules made from templates, an instruction, and the edited code.

Most of an edited file stands in the file before the edit, so a caller sends it along as the
`prediction` of the output. The editor here is a program, so every answer is right.

Invariant: `prediction != answer`, and the same seed gives the same edits.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

_WORDS = {
    "noun": "order invoice payment parcel ticket booking refund visit reading sample message "
    "account product delivery contract meeting session vehicle patient lesson report voucher "
    "shipment",
    "field": "price weight amount score rating length age size total count cost level",
    "local": "result kept found chosen picked matched collected gathered selected filtered",
    "verb": "check measure review collect inspect gather examine summarise tally audit",
    "other": "output answer values entries remaining wanted ready final survivors outcome",
}
_CHOICES = {kind: words.split() for kind, words in _WORDS.items()}

# {noun}, {field}, {local}, {verb}: names; {a}, {b}: whole numbers.
_TEMPLATES = (
    '''def {verb}_{noun}s({noun}s, limit={a}):
    """Return the {noun}s whose {field} is at least the limit."""
    {local} = []
    for {noun} in {noun}s:
        if {noun}.{field} >= limit:
            {local}.append({noun})
    return {local}
''',
    '''def {verb}_{field}s({noun}s):
    """Return the sum of every {field}, at most {a}."""
    {local} = 0
    for {noun} in {noun}s:
        {local} += {noun}["{field}"]
    return min({local}, {a})
''',
    '''def {verb}_{noun}({noun}, retries={a}):
    """Try to save the {noun}; wait {b} seconds between two tries."""
    for attempt in range(retries):
        {local} = save({noun})
        if {local} is not None:
            return {local}
        time.sleep({b})
    raise RuntimeError("the {noun} could not be saved")
''',
    '''def {verb}_by_{field}({noun}s, step={a}):
    """Count the {noun}s by {field}, in groups of the given width."""
    {local} = {{}}
    for {noun} in {noun}s:
        group = {noun}.{field} // step
        {local}[group] = {local}.get(group, 0) + 1
    return {local}
''',
    '''def {verb}_{field}({noun}, low={a}, high={b}):
    """Return the {field} of the {noun}, kept between two bounds."""
    {local} = {noun}.{field}
    if {local} < low:
        return low
    if {local} > high:
        return high
    return {local}
''',
    '''class {Noun}Queue:
    """Holds at most {a} {noun}s; the oldest goes first."""

    def __init__(self, limit={a}):
        self.limit = limit
        self.{local} = []

    def add(self, {noun}):
        if len(self.{local}) >= self.limit:
            self.{local}.pop(0)
        self.{local}.append({noun})
''',
)


@dataclass(frozen=True, slots=True)
class CodeEdit:
    """What a caller asks (`question`), expects (`prediction`: the code as it was) and wants."""

    question: str
    prediction: str
    answer: str


def code_edits(count: int, seed: int) -> list[CodeEdit]:
    """Make that many edits, no two alike."""
    return list({edit.question: edit for edit in _stream(count, seed)}.values())


def _stream(count: int, seed: int) -> Iterator[CodeEdit]:
    rng, seen = random.Random(f"code edits {seed}"), set()
    while len(seen) < count:
        edit = _edit(rng)
        if edit.question not in seen:
            seen.add(edit.question)
            yield edit


def _edit(rng: random.Random) -> CodeEdit:
    parts = rng.sample(_TEMPLATES, k=rng.choice((1, 2, 2)))
    names = [_names(rng) for _ in parts]
    code = "\n\n".join(part.format(**of) for part, of in zip(parts, names, strict=True))
    instruction, edited = rng.choice((_rename, _renumber, _rename_function))(rng, code, names)
    return CodeEdit(f"{instruction}\n\n{code}", code, edited)


def _names(rng: random.Random) -> dict[str, str | int]:
    noun = rng.choice(_CHOICES["noun"])
    return {
        "noun": noun,
        "Noun": noun.capitalize(),
        "field": rng.choice(_CHOICES["field"]),
        "local": rng.choice(_CHOICES["local"]),
        "verb": rng.choice(_CHOICES["verb"]),
        "a": rng.randint(2, 9) * rng.choice((1, 10, 100)),
        "b": rng.randint(11, 99) * 10,
    }


def _rename(rng: random.Random, code: str, names: list[dict[str, str | int]]) -> tuple[str, str]:
    old, new = str(rng.choice(names)["local"]), rng.choice(_CHOICES["other"])
    return f"Rename {old} to {new} in this code.", re.sub(rf"\b{old}\b", new, code)


def _rename_function(
    rng: random.Random,
    code: str,
    names: list[dict[str, str | int]],  # noqa: ARG001 - the three edits are called alike
) -> tuple[str, str]:
    old = rng.choice(re.findall(r"def (\w+)\(", code))
    new = f"{rng.choice(_CHOICES['verb'])}_{rng.choice(_CHOICES['other'])}"
    return f"Rename the function {old} to {new} in this code.", re.sub(rf"\b{old}\b", new, code)


def _renumber(rng: random.Random, code: str, names: list[dict[str, str | int]]) -> tuple[str, str]:
    numbers = sorted({str(of[key]) for of in names for key in "ab"} & set(re.findall(r"\d+", code)))
    old, new = rng.choice(numbers), str(rng.randint(100, 999))
    while new == old:
        new = str(rng.randint(100, 999))
    return f"Change {old} to {new} in this code.", re.sub(rf"\b{old}\b", new, code)
