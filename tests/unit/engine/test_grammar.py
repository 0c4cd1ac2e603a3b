"""Which tokens a grammar allows, how drafts are cut to them, and what cannot be compiled."""

import json
import re
from pathlib import Path

import pytest

from quickmatch.core.errors import InvalidRequest
from quickmatch.core.grammar import ANY_OBJECT, MAX_GRAMMAR_BYTES, Grammar
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine import grammar as grammar_module
from quickmatch.engine.grammar import Grammars
from quickmatch.engine.speculation.tree import DraftTree, Source
from quickmatch.engine.text.grammar_source import check_grammar
from quickmatch.engine.text.tokenizer import Tokenizer

FOLDER = Path(model_source(SHIPPED_MODEL))
VOCAB, EOS = 8192, (0, 2)
TOKENIZER = Tokenizer.from_folder(FOLDER)


def grammars() -> Grammars:
    return Grammars(FOLDER, VOCAB, EOS)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def members(mask: bytes) -> set[int]:
    return {i for i in range(VOCAB) if mask[i // 8] >> (i % 8) & 1}


def texts(mask: bytes) -> set[str]:
    return {TOKENIZER.token_text(i) for i in members(mask)}


def test_only_tokens_that_can_go_on_are_allowed() -> None:
    state = grammars().start(Grammar("regex", "ab?c"))
    assert texts(state.allowed([], [])) == {"a", "ab", "ac"}
    assert texts(state.allowed(ids("a"), [])) == {"b", "c"}
    assert members(state.allowed(ids("a") + ids("c"), [])) == set(EOS)
    assert state.error is None


def test_the_output_and_a_path_behind_it_are_one_text() -> None:
    state, other = (grammars().start(Grammar("regex", "[0-9]{6}!")) for _ in range(2))
    out = ids("12345")
    assert len(out) == 5
    assert state.allowed(out[:2], []) == state.allowed(out[:2], [])
    along = [state.allowed(out[:2], out[2:end]) for end in (2, 3, 4)]
    assert along == [other.allowed(out[:end], []) for end in (2, 3, 4)]
    assert state.allowed(out, []) == other.allowed(out, [])  # what was a path is output now


def test_a_draft_is_cut_to_what_may_follow() -> None:
    state = grammars().start(Grammar("regex", "1(23|45)6"))
    tree = DraftTree()
    one, nine = (tree.add(ids(text)[0], -1, 0.5, Source.SUFFIX_LOCAL) for text in "19")
    two = tree.add(ids("2")[0], one, 0.5, Source.SUFFIX_LOCAL)
    four = tree.add(ids("4")[0], one, 0.4, Source.SUFFIX_LOCAL)
    tree.add(ids("2")[0], nine, 0.9, Source.SUFFIX_LOCAL)
    tree.add(ids("3")[0], two, 0.9, Source.SUFFIX_LOCAL)
    tree.add(ids("3")[0], four, 0.9, Source.SUFFIX_LOCAL)
    cut = state.cut([], tree)
    assert [TOKENIZER.token_text(i) for i in cut.token_ids] == ["1", "2", "4", "3"]
    assert cut.parents == [-1, 0, 0, 1]
    assert state.cut(ids("1"), DraftTree.chain(ids("45"), [1, 1], Source.HEAD)).token_ids == ids(
        "45"
    )
    assert not len(state.cut(ids("1"), DraftTree.chain(ids("54"), [1, 1], Source.HEAD)))


def test_behind_an_end_that_a_draft_foretold_there_is_only_the_end() -> None:
    # Guards: an answer that is whole and yet an error, since a finished matcher takes no token.
    for grammar, text in ((Grammar("regex", "ab?c"), "ac"), (ANY_OBJECT, "{}")):
        state = grammars().start(grammar)
        out = ids(text)
        assert 2 in members(state.allowed(out[:1], out[1:]))
        assert members(state.allowed(out[:1], [*out[1:], 2])) == set(EOS)
        assert state.error is None


def test_what_a_grammar_leaves_no_choice_about_is_foretold() -> None:
    keys = Grammar(
        "json_schema",
        json.dumps({"properties": {"account": {}, "rate": {}}, "required": ["account", "rate"]}),
    )
    made = grammars()
    state = made.start(keys)
    assert state.forced(ids('{"')) == ids("account")  # its quote may be part of another token
    assert state.forced(ids('{"account')) == []
    assert state.error is None
    first, *others = ids("account")
    assert made.start(keys).forced([*ids('{"'), first]) == others
    assert made.start(keys).forced(ids('{"account": 1')) == []
    assert grammars().start(Grammar("regex", "[0-9]+")).forced([]) == []
    over = grammars().start(Grammar("regex", "abc"))
    assert over.forced(ids("abc")) == []


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (ANY_OBJECT, '{"a": [1, {"b": null}]}', "[1]"),
        (Grammar("json_schema", '{"enum": ["x", 1]}'), '"x"', '"y"'),
        (Grammar("choice", '["yes", "no \\"really\\""]'), 'no "really"', "nope"),
        (Grammar("grammar", 'root ::= "x" [0-9]+'), "x12", "12"),
        (Grammar("grammar", 'start: "(" start ")" | /[a-z]+/'), "((ab))", "((ab)"),
    ],
)
def test_every_kind_of_grammar(grammar: Grammar, good: str, bad: str) -> None:
    check_grammar(grammar)
    made = grammars()
    assert 2 in members(made.start(grammar).allowed(ids(good), []))
    state = made.start(grammar)
    is_wrong = 2 not in members(state.allowed(ids(bad), []))
    assert is_wrong or state.error is not None


def test_blanks_between_tokens_of_json_are_few() -> None:
    state = grammars().start(ANY_OBJECT)
    assert 2 in members(state.allowed(ids('{\n    "a": 1\n}'), []))
    lost = grammars().start(ANY_OBJECT)
    lost.allowed(ids('{"a":'), [])
    written = ids('{"a":')
    for _ in range(80):  # a model that writes blanks as long as it may
        blank = [i for i in members(lost.allowed(written, [])) if _is_blank(i)]
        if not blank:
            return
        written.append(blank[0])
    raise AssertionError("blanks without end")


def _is_blank(token_id: int) -> bool:
    return re.fullmatch(r"\s+", TOKENIZER.token_text(token_id)) is not None


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", '{"type": "objct"}'), "JSON schema cannot be compiled"),
        (Grammar("json_schema", '{"type": '), "JSON schema cannot be compiled"),
        (Grammar("json_schema", '{"if": {}}'), "if"),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("grammar", "start: nobody"), "nobody"),
    ],
)
def test_what_cannot_be_compiled_is_told(grammar: Grammar, words: str) -> None:
    for compile_it in (check_grammar, grammars().start):
        with pytest.raises(InvalidRequest, match=words) as told:
            compile_it(grammar)
        assert told.value.param == "response_format"


def test_a_grammar_may_not_be_endless() -> None:
    with pytest.raises(InvalidRequest, match=str(MAX_GRAMMAR_BYTES)):
        Grammar("regex", "a" * (MAX_GRAMMAR_BYTES + 1))


def test_a_model_without_an_end_token_is_told() -> None:
    with pytest.raises(InvalidRequest, match="eos_token_id"):
        Grammars(FOLDER, VOCAB, ()).start(ANY_OBJECT)


def test_compiled_grammars_are_kept_and_the_longest_unused_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_module, "MAX_COMPILED", 2)
    made = grammars()
    one, two, three = (Grammar("choice", json.dumps([text])) for text in "abc")
    made.start(one)
    made.start(two)
    made.start(one)
    made.start(three)
    assert [made.has(grammar) for grammar in (one, two, three)] == [True, False, True]


def test_an_output_that_the_grammar_does_not_know_is_an_error() -> None:
    state = grammars().start(Grammar("regex", "[0-9]+"))
    state.allowed(ids("a"), [])
    assert state.error
