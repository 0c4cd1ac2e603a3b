import random

import pytest

from quickmatch.engine.text.stop import StopMatcher


def feed(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, matcher.flush()], matcher.is_matched


def test_without_stops_text_passes() -> None:
    assert feed([], ["ab", "c"]) == (["ab", "c", ""], False)


def test_a_stop_that_spans_pieces() -> None:
    assert feed(["END"], ["one E", "N", "D two", "three"]) == (["one ", "", "", "", ""], True)


def test_holds_back_only_what_may_become_a_stop() -> None:
    assert feed(["\n\nUser"], ["hi\n", "\nUs", "a"]) == (["hi", "", "\n\nUsa", ""], False)
    assert feed(["aab"], ["aaa", "ab"]) == (["a", "a", ""], True)
    assert feed(["END"], ["an E"]) == (["an ", "E"], False)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["b", "c"], "abc", "a"),
        (["c", "b"], "abc", "a"),
        (["cd", "abcde"], "xabcdef", "xab"),  # "cd" is complete first
        (["c", "bc"], "abcd", "a"),  # complete together: the longer one
        (["aa"], "baaa", "b"),
        (["🙂"], "ok 🙂 bye", "ok "),
        (["x"], "abc", "abc"),
    ],
)
def test_the_same_however_the_text_is_cut(stops: list[str], text: str, expected: str) -> None:
    for pieces in ([text], list(text), [text[:2], text[2:]]):
        shown, is_matched = feed(stops, pieces)
        assert "".join(shown) == expected
        assert is_matched == (expected != text)


def expected_cut(stops: list[str], text: str) -> str:
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def test_random_cuts_agree_with_the_definition() -> None:
    rng = random.Random(6)
    for _ in range(2000):
        text = "".join(rng.choice("ab\n") for _ in range(rng.randrange(20)))
        stops = [
            "".join(rng.choice("ab\n") for _ in range(rng.randrange(1, 6)))
            for _ in range(rng.randrange(1, 4))
        ]
        pieces, rest = [], text
        while rest:
            size = rng.randrange(1, 5)
            pieces.append(rest[:size])
            rest = rest[size:]
        shown, _ = feed(stops, pieces)
        assert "".join(shown) == expected_cut(stops, text), (stops, pieces)
