"""Filters mean what MongoDB's mean: SQLite's answers against a plain-Python oracle."""

import random

import pytest

from quickmatch.core.errors import ConfigError
from quickmatch.store.documents import Deployment
from quickmatch.store.filters import compile_filter
from quickmatch.store.sqlite import SqliteStore

MISSING = object()
NUMBERS = [0, 1, -3, 2.5, 1.0, 10**17]
TEXTS = ["", "a", "b", "1", "true", "ä", "{}", "[1]"]
VALUES = [None, True, False, *NUMBERS, *TEXTS]
FIELDS = ["engine.a", "engine.b", "engine.c.d", "engine.a-b c", "engine.c", "model", "revision"]
OPERATORS = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists"]


def look_up(document, dotted):
    value = document
    for name in dotted.split("."):
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    return value


def kind_of(value):
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else type(value).__name__


def same(value, operand):
    if operand is None:
        return value is None or value is MISSING
    return value is not MISSING and kind_of(value) == kind_of(operand) and value == operand


def holds(value, operator, operand):
    if operator in ("$gt", "$gte", "$lt", "$lte"):
        if value is MISSING or kind_of(value) != kind_of(operand):
            return False
        return {
            "$gt": value > operand,
            "$gte": value >= operand,
            "$lt": value < operand,
            "$lte": value <= operand,
        }[operator]
    if operator == "$exists":
        return (value is not MISSING) == operand
    if operator in ("$in", "$nin"):
        return any(same(value, o) for o in operand) == (operator == "$in")
    return same(value, operand) == (operator == "$eq")


def oracle(document, where):
    for field, condition in where.items():
        operators = condition if isinstance(condition, dict) else {"$eq": condition}
        value = look_up(document, field)
        if not all(holds(value, o, v) for o, v in operators.items()):
            return False
    return True


def random_document(rng, number):
    engine = {k: rng.choice(VALUES) for k in ("a", "b", "a-b c") if rng.random() < 0.7}
    if rng.random() < 0.6:
        engine["c"] = rng.choice([{"d": rng.choice(VALUES)}, {}, [1], rng.choice(VALUES)])
    model = rng.choice(["a", "b", "c"])
    return Deployment(id=f"{number:03d}", created_at=float(number), model=model, engine=engine)


def random_condition(rng):
    if rng.random() < 0.3:
        return rng.choice(VALUES)
    condition = {}
    for operator in rng.sample(OPERATORS, rng.choice([1, 1, 2])):
        if operator == "$exists":
            condition[operator] = rng.random() < 0.5
        elif operator in ("$in", "$nin"):
            condition[operator] = rng.sample(VALUES, rng.randrange(4))
        elif operator in ("$eq", "$ne"):
            condition[operator] = rng.choice(VALUES)
        else:
            condition[operator] = rng.choice([*NUMBERS, *TEXTS])
    return condition


def test_random_filters_agree_with_the_oracle(tmp_path):
    rng = random.Random(20)
    store = SqliteStore(tmp_path / "store.db")
    documents = [random_document(rng, n) for n in range(120)]
    store.insert(*documents)
    num_matches = 0
    for _ in range(600):
        where = {f: random_condition(rng) for f in rng.sample(FIELDS, rng.choice([1, 1, 2]))}
        expected = [d.id for d in documents if oracle(d.model_dump(), where)]
        assert [d.id for d in store.find(Deployment, where)] == expected, where
        assert store.count(Deployment, where) == len(expected)
        num_matches += 0 < len(expected) < len(documents)
    store.close()
    assert num_matches > 200  # most filters told something


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"a": {"$gte2": 1}}, r"'\$gte2' on 'a' is unknown; did you mean '\$gte'"),
        ({"a": {"$regex": "x"}}, "is unknown"),
        ({"a": {"b": 1}}, "'b' on 'a' is unknown"),
        ({"$or": [{"a": 1}]}, "not supported at the top"),
        ({"a": {}}, "is empty"),
        ({"a": [1]}, "values are texts"),
        ({"a": {"$in": 3}}, "needs a list"),
        ({"a": {"$gt": None}}, "compares numbers or texts"),
        ({"a": {"$exists": 1}}, "needs true or false"),
        ({"a": float("nan")}, "finite"),
        ({'a"b': 1}, "not allowed"),
        ({"a\\": 1}, "not allowed"),
        ({"a..b": 1}, "not allowed"),
        ({"": 1}, "not allowed"),
    ],
)
def test_wrong_filters_say_what_is_wrong(where, reason):
    with pytest.raises(ConfigError, match=reason):
        compile_filter(where)


@pytest.mark.parametrize("evil", ["a') OR 1=1 --", "x; DROP TABLE documents", "a'b", "[0]", "a$"])
def test_no_text_of_a_filter_reaches_the_sql(evil):
    sql, values = compile_filter({evil: evil})
    assert evil not in sql
    assert evil in values


def test_huge_numbers_do_not_overflow(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    store.insert(Deployment(id="a", created_at=1.0, model="m", engine={"n": 10**30}))
    assert store.count(Deployment, {"engine.n": {"$gt": 10**29}}) == 1
    store.close()
