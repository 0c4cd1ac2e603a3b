"""Every wrong line is refused with its number and the reason; right ones come out as they are."""

import json

import pytest

from quickmatch.core.errors import DatasetError
from quickmatch.tuning.chat_rows import read_chat_rows

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


def row(*messages, **fields):
    return json.dumps({"messages": list(messages), **fields})


GOOD = row(USER, ANSWER)
RIGHT = [
    GOOD,
    row({"role": "system", "content": "Be short."}, USER, ANSWER),
    row(USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}),
    row(USER, ANSWER, USER, ANSWER | {"weight": 0}),
    row(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}),
    row(USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": ""}, ANSWER),
    row(USER | {"content": [{"type": "text", "text": "Why?"}]}, ANSWER),
    row(USER | {"name": "ann"}, ANSWER | {"reasoning_content": "hm"}),
    row(USER, ANSWER, tools=[{"type": "function"}], weight=0.5, metadata={"tags": {"a": "b"}}),
    "\ufeff" + GOOD,
]
WRONG = [
    ("{", "not JSON at column 2"),
    ("[" * 100_000, "not JSON|nested too deep"),
    ('"text"', "a row is a JSON object, this is a text"),
    ("[]", "a row is a JSON object"),
    ("{}", "'messages' must be a list of messages, not missing"),
    ('{"messages": []}', "not an empty list"),
    ('{"messages": {}}', "not an object"),
    ('{"message": []}', "unknown field 'message'; did you mean 'messages'"),
    (row(USER, ANSWER, split="train"), "unknown field 'split'.*put your own fields into"),
    (row(USER, "hello"), "message 2 must be an object"),
    (row({"content": "x"}, ANSWER), "message 1 has role None"),
    (row({"role": "robot", "content": "x"}, ANSWER), "has role 'robot'; allowed: system, user"),
    (row({"role": ["user"], "content": "x"}, ANSWER), "has role"),
    (row(USER | {"content": ""}, ANSWER), r"message 1 \(user\) has no content"),
    (row(USER | {"content": " \n"}, ANSWER), "has no content"),
    (row(USER | {"content": None}, ANSWER), "has no content"),
    (row(USER | {"content": 3}, ANSWER), "content of type a number"),
    (row(USER | {"content": [{"type": "image_url"}]}, ANSWER), "content part that is no text"),
    (row(USER | {"content": "\ud83d"}, ANSWER), "surrogate"),
    (row(USER, ANSWER | {"content": ""}), r"message 2 \(assistant\) has no content"),
    (row(USER), "the last message's role is 'user'; it must be 'assistant'"),
    (row(USER, ANSWER, USER), "the last message's role is 'user'"),
    (row(USER, ANSWER | {"weight": 0}), "no assistant message has weight 1"),
    (row(USER, ANSWER | {"weight": 0.5}), "weight 0.5; allowed: 0"),
    (row(USER, ANSWER | {"weight": True}), "weight True"),
    (row(USER, ANSWER | {"weight": [1]}), r"weight \[1\]"),
    (row(USER | {"weight": 1}, ANSWER), "only assistant messages may have one"),
    (row(USER, ANSWER | {"wieght": 1}), "unknown field 'wieght'; did you mean 'weight'"),
    (row(USER | {"tool_calls": [CALL]}, ANSWER), "has tool_calls, but its role is 'user'"),
    (row(USER, ANSWER | {"tool_calls": [{"function": {}}]}), "wrong tool_calls"),
    (row(USER, ANSWER, tools={}), "'tools' must be a list"),
    (row(USER, ANSWER, weight=-1), "weight is -1"),
    (row(USER, ANSWER, weight="1"), "must be a number"),
    (row(USER, ANSWER, weight=float("nan")), "finite"),
    (row(USER, ANSWER, metadata=[1]), "'metadata' must be an object"),
]


@pytest.mark.parametrize("line", RIGHT)
def test_right_lines(tmp_path, line):
    file = tmp_path / "right.jsonl"
    file.write_text(line + "\n\n")
    (found,) = read_chat_rows(file)
    again = tmp_path / "again.jsonl"
    again.write_text(found.to_json())
    assert list(read_chat_rows(again)) == [found]
    assert found.messages[-1]["role"] == "assistant"


@pytest.mark.parametrize(("line", "reason"), WRONG)
def test_wrong_lines(tmp_path, line, reason):
    file = tmp_path / "wrong.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(DatasetError, match=rf"wrong\.jsonl line 3: .*({reason})"):
        list(read_chat_rows(file))


def test_wrong_encoding_is_found_by_line(tmp_path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(GOOD.encode() + b"\n" + GOOD.replace("Why", "Où").encode("latin-1"))
    with pytest.raises(DatasetError, match=r"line 2: .*(not UTF-8|not JSON)"):
        list(read_chat_rows(file))
    raw = json.dumps({"messages": [USER | {"content": "Où"}, ANSWER]}, ensure_ascii=False)
    file.write_bytes(GOOD.encode() + b"\n" + raw.encode("latin-1"))
    with pytest.raises(DatasetError, match="line 2: not UTF-8 at byte"):
        list(read_chat_rows(file))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file(tmp_path, content):
    file = tmp_path / "empty.jsonl"
    file.write_text(content)
    with pytest.raises(DatasetError, match="holds no rows"):
        list(read_chat_rows(file))


def test_no_file(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read dataset file .*No such file"):
        list(read_chat_rows(tmp_path / "missing.jsonl"))


def test_prompt_and_answer(tmp_path):
    file = tmp_path / "row.jsonl"
    file.write_text(row(USER, ANSWER | {"weight": 0}, USER, ANSWER))
    (found,) = read_chat_rows(file)
    assert found.answer == "Because."
    assert found.prompt == [USER, ANSWER, USER]
