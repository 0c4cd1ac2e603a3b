"""The native suffix index: equal to the plain one, fast, and small."""

import random
import time

import pytest

from quickmatch.engine.speculation import suffix_index
from quickmatch.engine.speculation.suffix import SuffixDrafter
from quickmatch.engine.speculation.tree import DraftTree

native = pytest.importorskip("quickmatch._native")

NUM_TOKENS = 300_000


class Twins:
    """A native and a plain index that are told the same."""

    def __init__(self, rng: random.Random) -> None:
        settings = {
            "max_tokens": rng.choice([0, 1, 5, 30, 100, 400, 2000]),
            "max_depth": rng.choice([1, 4, 16]),
            "min_confidence": rng.choice([0.01, 0.1, 0.4]),
        }
        self.native = native.SuffixIndex(**settings)
        self.plain = suffix_index.SuffixIndex(**settings)

    def tell(self, name: str, *args: object) -> None:
        for index in (self.native, self.plain):
            getattr(index, name)(*args)

    def check(self) -> None:
        for name in ("num_tokens", "num_past_bytes", "num_live_bytes"):
            assert getattr(self.native, name) == getattr(self.plain, name), name


def vary(rng: random.Random, texts: list[list[int]], vocab: int) -> list[int]:
    """One of the texts with a few tokens changed; now and then so long that tables grow."""
    text = list(rng.choice(texts))
    for _ in range(rng.randrange(3)):
        if text:
            text[rng.randrange(len(text))] = rng.randrange(vocab)
    return text * (12 if rng.random() < 0.03 else 1)


@pytest.mark.parametrize("seed", range(25))
def test_native_and_plain_agree_to_the_last_bit(seed: int) -> None:
    rng = random.Random(seed)
    twins = Twins(rng)
    vocab = rng.choice([1, 2, 5, 50, 2**31])
    texts = [[rng.randrange(vocab) for _ in range(rng.randrange(60))] for _ in range(6)]
    live: list[int] = []
    for step in range(500):
        move = rng.random()
        scope = rng.choice("abc")
        if move < 0.1 or not live:
            twins.tell("start", step, scope, vary(rng, texts, vocab))
            live.append(step)
        elif move < 0.5:
            new = vary(rng, texts, vocab)[: rng.choice([1, 3, 60])]
            twins.tell("extend", rng.choice(live), new)
        elif move < 0.6:
            done = live.pop(rng.randrange(len(live)))
            twins.tell("finish", done, rng.random() < 0.8)
        elif move < 0.7:
            twins.tell("remember", scope, vary(rng, texts, vocab))
        else:
            ahead = rng.choice(texts)[: rng.choice([0, 0, 1, 2, 90])]
            asked = rng.choice(live), rng.choice([0, 1, 4, 24, 64]), ahead
            assert DraftTree.of(twins.native.draft(*asked)) == twins.plain.draft(*asked)
        twins.check()


def speak(rng: random.Random, phrases: list[list[int]], num_tokens: int) -> list[int]:
    """Phrases after one another, the common ones often, now and then a word of its own."""
    out: list[int] = []
    while len(out) < num_tokens:
        out += phrases[int(len(phrases) * rng.random() ** 3)]
        if rng.random() < 0.3:
            out.append(rng.randrange(8000))
    return out[:num_tokens]


def test_drafts_take_microseconds_and_tokens_few_bytes() -> None:
    """Bounds far above what a quiet machine needs (benchmarks/micro/suffix.py), far below Python's.

    In processor time, and of the best of three rounds: others use the machine too.
    """
    rng = random.Random(0)
    phrases = [[rng.randrange(8000) for _ in range(rng.randrange(2, 12))] for _ in range(3000)]
    drafter = SuffixDrafter(max_tokens=NUM_TOKENS, max_depth=16, min_confidence=0.05)
    before = time.process_time()
    for _ in range(NUM_TOKENS // 300):
        drafter.remember("a", speak(rng, phrases, 300))
    assert drafter.num_tokens == NUM_TOKENS
    assert drafter.num_bytes / NUM_TOKENS < 40
    assert (time.process_time() - before) / NUM_TOKENS < 5e-6  # making the text, for the most part
    text = speak(rng, phrases, 2000)
    drafter.start(1, "a", text[:1000])
    rounds = []
    num_nodes = 0
    for _ in range(3):
        before = time.process_time()
        for token in text[1000:1300]:
            num_nodes += len(drafter.draft(1, 24))
            drafter.extend(1, [token])
        rounds.append((time.process_time() - before) / 300)
    assert min(rounds) < 150e-6
    assert num_nodes / 900 > 4
