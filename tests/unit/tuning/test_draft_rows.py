"""What a head learns from: whose answers, as which tokens, and which tokens it can propose."""

import pytest

from quickmatch.core.errors import ConfigError
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.tuning.chat_rows import row_from_json
from quickmatch.tuning.draft_collect import split
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_rows import RowEncoder
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.draft_vocab import draft_vocab

TURNS = [
    {"role": "user", "content": "explain credit"},
    {"role": "assistant", "content": "because income"},
    {"role": "user", "content": "explain rating"},
]
ANSWER = {"role": "assistant", "content": "because short history"}


@pytest.fixture
def text(tiny_folder):
    return Tokenizer.from_folder(tiny_folder), ChatTemplate.from_folder(tiny_folder)


def encode(folder, row, regenerate):
    encoder = RowEncoder(folder, version_id="tiny@2", regenerate=regenerate)
    return encoder.encode(row)


def row(**metadata):
    return row_from_json({"messages": [*TURNS, ANSWER], "metadata": metadata}, shown_as="row")


def test_an_answer_is_learnt_as_it_was_served(tiny_folder, text):
    tokenizer, template = text
    asked = encode(tiny_folder, row(), False)
    prompt = template.render(TURNS)
    assert asked.prompt == tokenizer.encode(prompt, add_special_tokens=False)
    said = tokenizer.decode(asked.output, skip_special_tokens=False)
    assert said == "because short history<|im_end|>"  # the end of turn, and nothing behind it
    assert tokenizer.decode(asked.prompt, skip_special_tokens=False) == prompt


@pytest.mark.parametrize(
    ("regenerate", "metadata", "is_kept"),
    [
        (None, {}, False),  # a file's answer is nobody's
        (None, {"model_version": "tiny@1"}, False),  # an earlier version said it
        (None, {"model_version": "tiny@2"}, True),
        (True, {"model_version": "tiny@2"}, False),
        (False, {"model_version": "teacher@1"}, True),
    ],
)
def test_the_target_answers_anew_what_another_said(tiny_folder, regenerate, metadata, is_kept):
    asked = encode(tiny_folder, row(**metadata), regenerate)
    assert (asked.output is not None) is is_kept


def sequences(num, output=(5, 6, 7)):
    return [TokenSequence([1, 2, n], list(output)) for n in range(num)]


def test_of_traffic_the_newest_is_held_back_and_of_a_dataset_some_of_all():
    settings = DraftSettings.parse({"holdout": 0.2})
    newest = split(sequences(20), settings, newest=True)
    assert [s.prompt[2] for s in newest.held] == [16, 17, 18, 19]
    drawn = split(sequences(20), settings, newest=False)
    assert drawn == split(sequences(20), settings, newest=False)
    held = {s.prompt[2] for s in drawn.held}
    assert len(held) == 4
    assert held != {16, 17, 18, 19}
    assert sorted(s.prompt[2] for s in drawn.train) == sorted(set(range(20)) - held)


def test_the_vocabulary_is_what_answers_hold_most():
    rows = [TokenSequence([9, 9, 9, 3], [5, 6, 5]), TokenSequence([9, 8], [5, 7])]
    ids, reason = draft_vocab(rows, vocab_size=40, asked=16)
    assert ids == sorted(ids)
    assert {5, 6, 7, 9, 3, 8} <= set(ids)
    assert "3 of 40 tokens occur in the answers; 100.00% covered" in reason
    assert draft_vocab(rows, vocab_size=40, asked=None)[0] == list(range(40))
    assert len(draft_vocab(rows, vocab_size=100_000, asked=None)[0]) == 512
    many = [TokenSequence([1], list(range(9000)))]
    assert len(draft_vocab(many, vocab_size=10_000, asked=None)[0]) == 4096
    assert len(draft_vocab(many, vocab_size=100_000, asked=None)[0]) == 18_048  # twice as many
    with pytest.raises(ConfigError, match="draft_vocab_size is 41, but"):
        draft_vocab(rows, vocab_size=40, asked=41)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"unrol_steps": 3}, "unknown setting 'unrol_steps'; did you mean 'unroll_steps'"),
        ({"learning_rate": 0}, "learning_rate is 0: input should be greater than 0"),
        ({"holdout": 1.0}, "holdout is 1.0: input should be less than 1"),
        ({"draft_vocab_size": 8}, "draft_vocab_size is 8"),
        ({"epochs": "many"}, "epochs is 'many'"),
    ],
)
def test_wrong_settings_are_named(values, reason):
    with pytest.raises(ConfigError, match=reason):
        DraftSettings.parse(values)
