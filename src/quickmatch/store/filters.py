"""Turns a filter (a subset of MongoDB's query language) into SQL with bound parameters.

Owns the meaning of filters on JSON documents; does not know tables, connections or kinds.

Meaning, as in MongoDB: `None` matches a missing field and a null one; `$ne` and `$nin` match
missing fields too; an ordering operator compares a number with numbers and a text with texts
only; True is not 1. One difference: a field that holds a list matches by `$exists` and the
negations alone, its elements are not looked into.

Invariant: no text of a filter reaches the SQL. Values and field paths are bound parameters; only
an indexed field's path, which comes from the code, is written out, because SQLite uses an index
over an expression only where the query spells that expression.
"""

import difflib
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

from quickmatch.core.errors import ConfigError
from quickmatch.store.protocol import Filter

COLUMNS = frozenset({"id", "created_at", "revision"})  # kept beside the JSON body as well
_ORDERING = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS = ("$eq", "$ne", *_ORDERING, "$in", "$nin", "$exists")
_MAX_INT = (1 << 63) - 1

Sql = tuple[str, list[Any]]  # a piece of SQL and the values of its question marks


def json_path(field: str) -> str:
    """Return SQLite's path for a dotted name. Raises ConfigError on a name that cannot be one."""
    parts = field.split(".")
    if not all(parts) or any(c == '"' or c == "\\" or ord(c) < 32 for c in field):
        raise ConfigError(
            f"field name {field!r} is not allowed in a filter; "
            "use names joined by single dots, without quotes or backslashes"
        )
    return "$" + "".join(f'."{part}"' for part in parts)


def extract(field: str, indexed: Collection[str] = ()) -> Sql:
    """Return the SQL of a field's value. Raises ConfigError on a name that cannot be one."""
    if field in COLUMNS:
        return field, []
    if field in indexed:
        return f"json_extract(body, '{json_path(field)}')", []
    return "json_extract(body, ?)", [json_path(field)]


def compile_filter(where: Filter | None, indexed: Collection[str] = ()) -> Sql:
    """Return the SQL condition that holds for matching rows; "1" for an empty filter.

    indexed: dotted names that have an index over their expression.
    Raises ConfigError on an operator or value that filters do not know, naming the nearest.
    """
    terms = [
        term
        for field, condition in (where or {}).items()
        for term in _field_terms(field, condition, indexed)
    ]
    if not terms:
        return "1", []
    return " AND ".join(f"({sql})" for sql, _ in terms), [v for _, vs in terms for v in vs]


def _field_terms(field: str, condition: Any, indexed: Collection[str]) -> Iterable[Sql]:
    if field.startswith("$"):
        raise ConfigError(
            f"filter operator {field!r} is not supported at the top; a filter is "
            '{"field": value} or {"field": {"$gt": value}}, and all its conditions must hold'
        )
    value = _Field(field, indexed)
    if not isinstance(condition, dict):
        return [value.equal(condition)]
    if not condition:
        raise ConfigError(f"filter on {field!r} is empty; give a value or {{'$eq': value}}")
    return [_operator(value, name, operand) for name, operand in condition.items()]


def _operator(value: "_Field", name: str, operand: Any) -> Sql:
    if name in _ORDERING:
        return value.ordered(name, operand)
    known: dict[str, Callable[[Any], Sql]] = {
        "$eq": value.equal,
        "$ne": lambda v: _negate(value.equal(v)),
        "$in": value.among,
        "$nin": lambda v: _negate(value.among(v)),
        "$exists": value.exists,
    }
    if name not in known:
        near = difflib.get_close_matches(name, _OPERATORS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"filter operator {name!r} on {value.name!r} is unknown; did you mean {near!r}? "
            f"Known: {' '.join(_OPERATORS)}"
        )
    return known[name](operand)


def _negate(term: Sql) -> Sql:
    return f"({term[0]}) IS NOT TRUE", term[1]


class _Field:
    """The SQL of comparisons of one field."""

    def __init__(self, name: str, indexed: Collection[str]) -> None:
        self.name = name
        self._value, self._path = extract(name, indexed)
        self._is_column = name in COLUMNS

    def equal(self, operand: Any) -> Sql:
        """Equal, and of the same type."""
        if operand is None:
            return f"{self._value} IS NULL", self._path
        types, bound = self._typed(operand)
        return self._guarded("=", types, bound)

    def ordered(self, name: str, operand: Any) -> Sql:
        """Above or below; numbers with numbers, texts with texts."""
        if operand is None or isinstance(operand, bool):
            raise ConfigError(
                f"filter {name} on {self.name!r} got {operand!r}; it compares numbers or texts"
            )
        types, bound = self._typed(operand)
        return self._guarded(_ORDERING[name], types, bound)

    def among(self, operand: Any) -> Sql:
        """Equal to one of a list."""
        if not isinstance(operand, list | tuple | set):
            raise ConfigError(f"filter $in or $nin on {self.name!r} needs a list, got {operand!r}")
        terms = [self.equal(v) for v in operand]
        if not terms:
            return "0", []
        return " OR ".join(f"({sql})" for sql, _ in terms), [v for _, vs in terms for v in vs]

    def exists(self, operand: Any) -> Sql:
        """Whether the field is there, be it null."""
        if not isinstance(operand, bool):
            raise ConfigError(f"filter $exists on {self.name!r} needs true or false")
        if self._is_column:
            return ("1" if operand else "0"), []
        test = "IS NOT NULL" if operand else "IS NULL"
        return f"json_type(body, ?) {test}", [json_path(self.name)]

    def _guarded(self, operator: str, types: str, bound: Any) -> Sql:
        comparison = f"{self._value} {operator} ?"
        if self._is_column:  # numbers sort below texts in SQLite: ask for the type here too
            return f"{comparison} AND typeof({self.name}) IN ({types})", [bound]
        guard = f"json_type(body, ?) IN ({types})"
        return f"{comparison} AND {guard}", [*self._path, bound, json_path(self.name)]

    def _typed(self, operand: Any) -> tuple[str, Any]:
        """Return the JSON types that a field must have to compare, and the value to bind."""
        if isinstance(operand, bool):
            return ("'true'" if operand else "'false'"), int(operand)
        if isinstance(operand, str):
            return "'text'", operand
        if isinstance(operand, int) and abs(operand) <= _MAX_INT:
            return "'integer', 'real'", operand
        if isinstance(operand, int | float) and math.isfinite(operand):
            return "'integer', 'real'", float(operand)
        raise ConfigError(
            f"filter on {self.name!r} got {operand!r}; values are texts, finite numbers, "
            "true, false or null"
        )
