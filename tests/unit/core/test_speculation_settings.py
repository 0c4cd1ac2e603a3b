"""Settings of speculation: what is refused and how, and which ones an engine is started with."""

from typing import Any

import pytest

from quickmatch.core.errors import ConfigError
from quickmatch.core.speculation_settings import SpeculationSettings, engine_part


def test_unset_values_are_left_to_the_engine() -> None:
    assert SpeculationSettings.parse({}).engine_values() == {}
    given = {"max_depth": 4, "drafters": ["suffix"], "adapt_interval_s": 5}
    assert SpeculationSettings.parse(given).engine_values() == {
        "max_depth": 4,
        "drafters": ("suffix",),
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("auto", None),
        (None, None),
        ("off", ()),
        ([], ()),
        ("suffix, head", ("suffix", "head")),
        (["prediction"], ("prediction",)),
    ],
)
def test_drafters_are_read_from_texts_too(value: Any, expected: Any) -> None:
    assert SpeculationSettings.parse({"drafters": value}).drafters == expected


def test_off_reaches_the_engine() -> None:
    assert SpeculationSettings.parse({"drafters": "off"}).engine_values() == {"drafters": ()}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"adopt": True}, "unknown setting speculation.adopt; did you mean speculation.adapt?"),
        ({"max_depth": 0}, "speculation.max_depth is 0: .*greater than or equal to 1"),
        ({"adapt": "perhaps"}, "speculation.adapt is 'perhaps'"),
        ({"adapt": True, "drafters": "suffix"}, "drafters is suffix; add 'head'"),
        ({"adapt": True, "drafters": "off"}, "drafters is off; add 'head'"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        SpeculationSettings.parse(values)


def test_only_the_engines_part_starts_an_engine_again() -> None:
    values = {"adapt": True, "adapt_min_requests": 9, "max_depth": 3, "misspelt": 1}
    assert engine_part(values) == {"max_depth": 3, "misspelt": 1}
