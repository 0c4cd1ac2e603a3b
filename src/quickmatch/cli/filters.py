"""The `--filter` language: `tags.app=credit AND timings.total_ms>200`, or a JSON object.

A filter is conditions joined by AND (AIP-160's common part). Values are JSON where they parse as
JSON, text otherwise. It becomes a store filter, MongoDB's subset.
"""

import json
import re
from typing import Any

from quickmatch.core.errors import ConfigError
from quickmatch.store.protocol import Filter

_OPERATORS = {"=": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(!=|>=|<=|=|>|<)\s*(.+?)\s*")
_TEXT_FIELDS = ("tags.", "id", "model", "tenant")  # compared as text, even if they look a number


def parse_filter(text: str) -> Filter:
    """Return the store filter that `text` says. Raises ConfigError with the part that is wrong."""
    text = text.strip()
    if not text:
        return {}
    if text.startswith("{"):
        return _parse_json(text)
    where: Filter = {}
    for part in re.split(r"\s+(?:AND|and)(?:\s+|$)", text):
        field, operator, value = _parse_condition(part)
        where.setdefault(field, {})[_OPERATORS[operator]] = value
    return where


def _parse_json(text: str) -> Filter:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"filter is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError('a JSON filter is an object, as in \'{"model": "teacher"}\'')
    return value


def _parse_condition(part: str) -> tuple[str, str, Any]:
    match = _CONDITION.fullmatch(part)
    if match is None:
        raise ConfigError(
            f"filter condition {part!r} is not FIELD OPERATOR VALUE; operators: "
            f"{' '.join(_OPERATORS)}; example: tags.app=credit AND status=200"
        )
    field, operator, raw = match.groups()
    return field, operator, _value(field, raw)


def _value(field: str, raw: str) -> Any:
    if field.startswith(_TEXT_FIELDS) and not raw.startswith('"'):
        return raw
    try:
        return json.loads(raw)
    except json.JSONDecodeError:
        return raw
