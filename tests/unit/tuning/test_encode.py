"""What is learnt: a truth table of loss masks, for templates with and without markers."""

import pytest

from quickmatch.core.errors import ConfigError, DatasetError
from quickmatch.tuning.chat_rows import row_from_json
from quickmatch.tuning.encode import encode_row, encode_rows
from tests.unit.tuning.conftest import MARKED_TEMPLATE, PLAIN_TEMPLATE, make_rows

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Why?"}
SHORT_MARKS = MARKED_TEMPLATE.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
)


def answer(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def learnt_text(messages, tokenizer, template, **fields):
    row = row_from_json({"messages": messages, **fields}, shown_as="row")
    encoded = encode_row(row, tokenizer, template, where="row")
    assert len(encoded.token_ids) == len(encoded.weights)
    pieces = zip(encoded.token_ids, encoded.weights, strict=True)
    return tokenizer.decode([t for t, w in pieces if w])


TABLE = [
    ([USER, answer("One.")], "One.<|im_end|>"),
    ([SYSTEM, USER, answer("One.")], "One.<|im_end|>"),
    ([USER, answer("One."), USER, answer("Two.")], "One.<|im_end|>Two.<|im_end|>"),
    ([USER, answer("One.", weight=0), USER, answer("Two.")], "Two.<|im_end|>"),
    ([USER, answer("One."), USER, answer("Two.", weight=0)], "One.<|im_end|>"),
    ([USER, answer("Why?")], "Why?<|im_end|>"),  # the question's own words are not learnt
    ([USER, answer("a\n\n")], "a\n\n<|im_end|>"),
    ([USER, answer("Ünï ☃")], "Ünï ☃<|im_end|>"),
    ([answer("I start."), USER, answer("Two.")], "I start.<|im_end|>Two.<|im_end|>"),
]


@pytest.mark.parametrize("template", [MARKED_TEMPLATE, PLAIN_TEMPLATE, SHORT_MARKS])
@pytest.mark.parametrize(("messages", "learnt"), TABLE)
def test_truth_table(tokenizer, template, messages, learnt):
    assert learnt_text(messages, tokenizer, template) == learnt


def test_tokens_are_those_of_serving(tokenizer):
    row = row_from_json({"messages": [SYSTEM, USER, answer("One.")]}, shown_as="row")
    encoded = encode_row(row, tokenizer, MARKED_TEMPLATE, where="row")
    prompt = tokenizer.apply_chat_template(
        row.prompt, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert encoded.token_ids[: len(prompt)] == prompt
    assert encoded.weights[: len(prompt)] == [0.0] * len(prompt)
    assert encoded.weights[len(prompt)] == 1.0


def test_transformers_own_mask_agrees(tokenizer):
    messages = [SYSTEM, USER, answer("One."), USER, answer("Two, and more.")]
    row = row_from_json({"messages": messages}, shown_as="row")
    encoded = encode_row(row, tokenizer, MARKED_TEMPLATE, where="row")
    theirs = tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    assert encoded.token_ids == theirs["input_ids"]
    assert [int(w > 0) for w in encoded.weights] == theirs["assistant_masks"]


def test_row_weights_scale_the_loss(tokenizer):
    row = row_from_json({"messages": [USER, answer("One.")], "weight": 0.25}, shown_as="row")
    encoded = encode_row(row, tokenizer, MARKED_TEMPLATE, where="row")
    assert set(encoded.weights) == {0.0, 0.25}


def test_tools_reach_the_template(tokenizer):
    row = row_from_json({"messages": [USER, answer("x")], "tools": [{"name": "abc"}]}, shown_as="r")
    encoded = encode_row(row, tokenizer, PLAIN_TEMPLATE, where="row")
    assert "tools: abc" in tokenizer.decode(encoded.token_ids)


def test_a_template_that_rewrites_earlier_turns(tokenizer):
    forgetful = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ 'THINK ' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    turns = [USER, answer("One."), USER, answer("Two.")]
    with pytest.raises(DatasetError, match=r"row: .* message 2 differently .* give it weight 0"):
        learnt_text(turns, tokenizer, forgetful)
    turns[1] = answer("One.", weight=0)
    assert learnt_text(turns, tokenizer, forgetful) == "THINK Two.<|im_end|>"


def test_a_template_that_refuses(tokenizer):
    strict = "{{ raise_exception('no system role') }}"
    with pytest.raises(DatasetError, match="row: the chat template refuses it: no system role"):
        learnt_text([USER, answer("One.")], tokenizer, strict)


def test_long_rows_are_left_out_and_counted(tokenizer):
    rows = [row_from_json(r, shown_as="r") for r in make_rows(20)]
    everything = encode_rows(rows, tokenizer, 1000, name="d")
    lengths = [len(r.token_ids) for r in everything.rows]
    limit = sorted(lengths)[10]
    some = encode_rows(rows, tokenizer, limit, name="d")
    assert some.too_long == [i + 1 for i, n in enumerate(lengths) if n > limit]
    assert len(some.rows) + len(some.too_long) == 20
    assert f"{len(some.too_long)} rows left out, longer than {limit}" in some.describe(limit)
    with pytest.raises(DatasetError, match=r"none of its 20 rows fits 5 tokens, the longest has"):
        encode_rows(rows, tokenizer, 5, name="d")


def test_no_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ConfigError, match="has no chat template; add one"):
        encode_rows([], tokenizer, 10, name="d")
