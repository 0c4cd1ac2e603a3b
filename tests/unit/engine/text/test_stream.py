from typing import Any

from quickmatch.core.completion import FinishReason
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.text.stream import TextStream
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.engine.wire import Tokens


def tokens(*ids: int, **fields: Any) -> Tokens:
    return Tokens(request_id="r", token_ids=list(ids), **fields)


def test_text_tokens_and_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick 🙂 fox", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams(), index=2)
    deltas = [stream.push(tokens(i)) for i in ids[:-1]]
    assert not stream.is_finished
    deltas.append(stream.push(tokens(ids[-1], finish_reason="length")))
    assert "".join(d.text for d in deltas) == "the quick 🙂 fox"
    assert [i for d in deltas for i in d.token_ids] == ids
    assert {d.index for d in deltas} == {2}
    assert [d.finish_reason for d in deltas if d.finish_reason] == [FinishReason.LENGTH]
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert stream.num_tokens == len(ids)
    assert stream.is_finished


def test_the_token_that_ends_it_counts_and_has_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick", add_special_tokens=False)
    plain = tokenizer.encode("fox", add_special_tokens=False)[0]  # as with stop_token_ids
    stream = TextStream(tokenizer, SamplingParams())
    delta = stream.push(tokens(*ids, plain, finish_reason="stop"))
    assert delta.text == "the quick"
    assert delta.finish_reason is FinishReason.STOP
    assert stream.num_tokens == len(ids) + 1


def test_prediction_counts_add_up_and_a_stop_string_bounds_them(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    counts: Any = {"num_accepted_prediction_tokens": len(ids), "num_rejected_prediction_tokens": 3}
    stream = TextStream(tokenizer, SamplingParams())
    stream.push(tokens(*ids, **counts))
    stream.push(tokens(*ids, **counts, finish_reason="length"))
    assert stream.num_accepted_prediction_tokens == 2 * len(ids)
    assert stream.num_rejected_prediction_tokens == 6
    stopped = TextStream(tokenizer, SamplingParams(stop=("the",)))
    delta = stopped.push(tokens(*ids, **counts))
    assert stopped.num_accepted_prediction_tokens == len(delta.token_ids) < len(ids)


def test_a_stop_string_ends_it_before_the_engine_does(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams(stop=("ck b",)))
    text, taken = "", 0
    for i in ids:
        delta = stream.push(tokens(i))
        text += delta.text
        taken += 1
        if stream.is_finished:
            break
    assert text == "the qui"
    assert delta.finish_reason is FinishReason.STOP
    assert stream.num_tokens == taken < len(ids)
    assert "ck b" in tokenizer.decode(ids[:taken])
    assert "ck b" not in tokenizer.decode(ids[: taken - 1])
    late = stream.push(tokens(*ids, finish_reason="length"))
    assert (late.text, late.token_ids, late.finish_reason) == ("", (), None)
    assert stream.num_tokens == taken


def test_tokens_behind_a_stop_string_in_one_piece_do_not_count(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams(stop=(" ",)))
    entries = [[(i, -0.5)] for i in ids]
    delta = stream.push(tokens(*ids, logprobs=entries, finish_reason="length"))
    assert delta.text == "the"
    assert delta.finish_reason is FinishReason.STOP
    assert stream.num_tokens == len(delta.token_ids) == len(delta.logprobs) < len(ids)


def test_what_was_held_back_comes_with_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the qui🙂", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams(stop=("quick", "\ufffdx")))
    text = "".join(stream.push(tokens(i)).text for i in ids[:-1])
    last = stream.push(tokens(finish_reason="cancel"))
    assert text == "the "
    assert last.text.startswith("qui")
    assert last.text[3:].strip("\ufffd") == ""
    assert last.finish_reason is FinishReason.STOP


def test_the_beginning_of_a_stop_string_is_text_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the qui", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams(stop=("quick",)))
    assert "".join(stream.push(tokens(i)).text for i in ids) == "the "
    assert stream.push(tokens(7, finish_reason="stop")).text == "qui"


def test_logprobs_carry_the_tokens_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(" quick", add_special_tokens=False)
    other = byte_level.encode("🙂", add_special_tokens=False)[0]
    stream = TextStream(byte_level, SamplingParams(logprobs=2))
    delta = stream.push(tokens(ids[0], logprobs=[[(ids[0], -0.25), (other, -0.5), (ids[0], -0.7)]]))
    (entry,) = delta.logprobs
    own = byte_level.token_text(ids[0])
    assert (entry.token_id, entry.token, entry.logprob) == (ids[0], own, -0.25)
    assert entry.top == ((other, "\ufffd", -0.5), (ids[0], own, -0.7))


def test_cached_tokens_are_taken_over(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, SamplingParams())
    stream.push(tokens(5, num_cached_tokens=48))
    stream.push(tokens(6))
    assert stream.num_cached_tokens == 48
