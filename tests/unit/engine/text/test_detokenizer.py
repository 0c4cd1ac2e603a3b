import random

import pytest

from quickmatch.engine.text.detokenizer import make_detokenizer
from quickmatch.engine.text.tokenizer import Tokenizer
from tests.unit.engine.text.tokenizers_for_tests import random_text


def stream(tokenizer: Tokenizer, ids: list[int], context: tuple[int, ...] = ()) -> list[str]:
    detokenizer = make_detokenizer(tokenizer, context)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def test_pieces_join_to_the_whole_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    for _ in range(200):
        ids = tokenizer.encode(random_text(rng, rng.randrange(1, 60)), add_special_tokens=False)
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)


def test_no_piece_holds_half_a_character(tokenizer: Tokenizer) -> None:
    rng = random.Random(4)
    num_empty = 0
    for _ in range(100):
        text = "🙂" + random_text(rng, 40)
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = stream(tokenizer, ids)
        assert not any("\ufffd" in piece for piece in pieces)
        assert pieces[-1] == ""
        num_empty += pieces[:-1].count("")
    assert num_empty > 100  # characters did span tokens


def test_text_comes_as_soon_as_it_is_certain(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("quick 🙂 fox", add_special_tokens=False)
    detokenizer = make_detokenizer(byte_level)
    shown = ""
    for i, token_id in enumerate(ids):
        shown += detokenizer.push(token_id)
        whole = b"".join(byte_level.token_bytes(j) for j in ids[: i + 1])
        assert shown == whole.decode("utf-8", "ignore")


def test_an_incomplete_character_shows_only_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂", add_special_tokens=False)
    pieces = stream(tokenizer, ids[:-1])
    assert "\ufffd" not in "".join(pieces[:-1])
    assert "\ufffd" in pieces[-1]


def test_a_real_replacement_character_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\ufffd\ufffdb\ufffd", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == "a\ufffd\ufffdb\ufffd"


def test_random_ids_agree_with_decoding_the_whole(byte_level: Tokenizer) -> None:
    """Broken byte sequences too: each shows as the same replacement characters."""
    rng = random.Random(5)
    for _ in range(300):
        ids = [rng.randrange(byte_level.vocab_size) for _ in range(rng.randrange(1, 30))]
        assert "".join(stream(byte_level, ids)) == byte_level.decode(ids)


def test_random_words_agree_with_decoding_the_whole(sentencepiece: Tokenizer) -> None:
    rng = random.Random(5)
    no_words = sentencepiece.special_ids | set(sentencepiece.fallback_bytes)
    words = [i for i in range(sentencepiece.vocab_size) if i not in no_words]
    for _ in range(300):
        ids = [rng.choice(words) for _ in range(rng.randrange(1, 30))]
        assert "".join(stream(sentencepiece, ids)) == sentencepiece.decode(ids)


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("quick fox", add_special_tokens=False)
    special = sorted(tokenizer.special_ids)[-1]
    with_special = [special, *ids[:1], special, *ids[1:], special]
    assert "".join(stream(tokenizer, with_special)) == "quick fox"


def test_a_first_word_keeps_its_space_behind_a_prompt(sentencepiece: Tokenizer) -> None:
    prompt = sentencepiece.encode("the quick", add_special_tokens=False)
    ids = sentencepiece.encode("fox", add_special_tokens=False)
    assert sentencepiece.token_text(ids[0]).startswith(" ")
    assert "".join(stream(sentencepiece, ids, tuple(prompt))) == " fox"
    assert "".join(stream(sentencepiece, ids)) == "fox"


def test_bytes_that_never_make_a_character_show_where_they_stand(sentencepiece: Tokenizer) -> None:
    smile = [i for i in sentencepiece.encode("🙂") if i in sentencepiece.fallback_bytes]
    fox = sentencepiece.encode("fox", add_special_tokens=False)
    assert "".join(stream(sentencepiece, smile + fox)) == "🙂 fox"
    assert "".join(stream(sentencepiece, smile[:-1] + fox)) == "\ufffd fox"


@pytest.mark.parametrize("what", ["text", "special", "bytes"])
def test_work_per_token_does_not_grow(
    sentencepiece: Tokenizer, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {
        "text": sentencepiece.encode("the quick brown fox ", add_special_tokens=False),
        "special": sorted(sentencepiece.special_ids),
        "bytes": sorted(sentencepiece.fallback_bytes)[128:132],
    }[what]
    sizes: list[int] = []
    decode = sentencepiece.decode

    def counted(token_ids: list[int]) -> str:
        sizes.append(len(token_ids))
        return decode(token_ids)

    monkeypatch.setattr(sentencepiece, "decode", counted)
    detokenizer = make_detokenizer(sentencepiece, tuple(ids * 20))
    for token_id in ids * 50:
        detokenizer.push(token_id)
    assert len(sizes) <= 2 * 50 * len(ids)
    assert max(sizes, default=0) <= 5
