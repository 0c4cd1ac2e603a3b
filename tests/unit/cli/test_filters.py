"""The filter language becomes store filters, and says what is wrong."""

import pytest

from quickmatch.cli.filters import parse_filter
from quickmatch.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", {}),
        ("tags.app=credit", {"tags.app": {"$eq": "credit"}}),
        ("tags.batch=7", {"tags.batch": {"$eq": "7"}}),
        ("status=200", {"status": {"$eq": 200}}),
        ("stream=true", {"stream": {"$eq": True}}),
        ("a!=1 AND b<=2.5", {"a": {"$ne": 1}, "b": {"$lte": 2.5}}),
        ("t>=1 and t<9", {"t": {"$gte": 1, "$lt": 9}}),
        ('name="x = y"', {"name": {"$eq": "x = y"}}),
        ('{"model": {"$in": ["a", "b"]}}', {"model": {"$in": ["a", "b"]}}),
    ],
)
def test_parses(text: str, where: dict[str, object]) -> None:
    assert parse_filter(text) == where


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("status", "FIELD OPERATOR VALUE"),
        ("status=200 AND", "FIELD OPERATOR VALUE"),
        ("=3", "FIELD OPERATOR VALUE"),
        ("{bad", "not valid JSON"),
    ],
)
def test_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_filter(text)
