"""Measures: exact greedy lookups, perplexity of held-out text, sample answers.

A lookup prompt holds `- key: value` lines and asks "What is the KEY?". Its words are the held-out
ones of `words.py`, its values fresh. The greedy answer is right only if it is "The KEY is VALUE."
to the letter.

    python -m recipes.base_model.probe --folder src/quickmatch/base_model data/*.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer

from recipes.base_model.model import BaseModel
from recipes.base_model.text import Source, load_sources
from recipes.base_model.words import Words, money

MAX_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Lookup:
    """One question and its only right answer."""

    prompt: str
    answer: str


def chat_prompt(content: str) -> str:
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def make_lookup(rng: Random, words: Words, fields: int, value: Callable[[Random], str]) -> Lookup:
    """A record with distinct keys and values, and a question for one of them."""
    record: dict[str, str] = {}
    while len(record) < fields:
        record.setdefault(words.field(rng), value(rng))
    key = rng.choice(list(record))
    listed = "\n".join(f"- {name}: {held}" for name, held in record.items())
    return Lookup(chat_prompt(f"{listed}\n\nWhat is the {key}?"), f"The {key} is {record[key]}.")


def probes(tokenizer: Tokenizer, count: int, seed: int = 99) -> dict[str, list[Lookup]]:
    """The probes by name; every word in them was kept out of training."""
    words = Words.of(tokenizer, held_out=True)

    def grouped(rng: Random) -> str:
        number = rng.randint(10_000, 9_999_999)
        return f"{number:,}" if rng.random() < 0.5 else str(number)

    kinds: dict[str, tuple[int, Callable[[Random], str]]] = {
        "lookup_6": (6, words.value),
        "lookup_12": (12, words.value),
        "number_6": (6, grouped),
        "number_12": (12, grouped),
        "money_9": (9, money),
        "phrase_6": (6, words.phrase),
    }
    return {
        name: [make_lookup(Random(f"{seed}{name}{n}"), words, *kind) for n in range(count)]
        for name, kind in kinds.items()
    }


@torch.no_grad()
def greedy(
    model: BaseModel, tokenizer: Tokenizer, prompts: list[str], max_tokens: int = MAX_ANSWER_TOKENS
) -> list[str]:
    """Greedy answers, batched over prompts of equal length; no KV cache, prompts are short."""
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    answers = [""] * len(prompts)
    for length in sorted({len(ids) for ids in encoded}):
        group = [index for index, ids in enumerate(encoded) if len(ids) == length]
        produced = _decode(model, [encoded[index] for index in group], tokenizer, max_tokens)
        for index, ids in zip(group, produced, strict=True):
            answers[index] = tokenizer.decode(ids)
    return answers


def _decode(
    model: BaseModel, prompts: list[list[int]], tokenizer: Tokenizer, max_tokens: int
) -> list[list[int]]:
    ends = {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")}
    device = model.embed_tokens.weight.device
    tokens = torch.tensor(prompts, device=device)
    produced: list[list[int]] = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    for _ in range(max_tokens):
        with torch.autocast(device.type, torch.bfloat16):
            states = model.hidden(tokens)[:, -1]
            chosen = (states @ model.embed_tokens.weight.T).argmax(dim=-1)
        still = [place for place, token in enumerate(chosen.tolist()) if token not in ends]
        for place in still:
            produced[open_rows[place]].append(int(chosen[place]))
        if not still:
            break
        tokens = torch.cat([tokens[still], chosen[still, None]], dim=1)
        open_rows = [open_rows[place] for place in still]
    return produced


@torch.no_grad()
def lookup_accuracy(
    model: BaseModel, tokenizer: Tokenizer, lookups: list[Lookup], rows: int = 20
) -> float:
    """Share of lookups answered exactly, end of turn included, by greedy decoding.

    Greedy decoding gives the answer's tokens if and only if each of them is the most likely one
    after the prompt and the answer's tokens before it, so one forward pass over prompt and answer
    decides.
    """
    encoded = [
        (tokenizer.encode(each.prompt).ids, tokenizer.encode(each.answer + "<|im_end|>").ids)
        for each in lookups
    ]
    encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    right = 0
    for first in range(0, len(encoded), rows):
        right += _num_right(model, encoded[first : first + rows])
    return right / len(lookups)


def _num_right(model: BaseModel, pairs: list[tuple[list[int], list[int]]]) -> int:
    device = model.embed_tokens.weight.device
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    rows = [(prompt + answer + [0] * longest)[:longest] for prompt, answer in pairs]
    right = 0
    with torch.autocast(device.type, torch.bfloat16):
        states = model.hidden(torch.tensor(rows, device=device))
        for row, (prompt, answer) in zip(states, pairs, strict=True):
            wanted = row[len(prompt) - 1 : len(prompt) + len(answer) - 1]
            chosen = (wanted @ model.embed_tokens.weight.T).argmax(dim=-1)
            right += chosen.tolist() == answer
    return right


def prose_accuracy(model: BaseModel, tokenizer: Tokenizer, count: int, seed: int = 99) -> float:
    """Share of the values of five-field records that the model's prose quotes exactly."""
    words = Words.of(tokenizer, held_out=True)
    found = total = 0
    for number in range(count):
        rng = Random(f"{seed}prose{number}")
        record = words.record(rng, 5)
        listed = "\n".join(f"- {key}: {value}" for key, value in record.items())
        prompt = chat_prompt(f"Describe this lighthouse in a few sentences.\n\n{listed}")
        answer = greedy(model, tokenizer, [prompt], 160)[0]
        found += sum(value in answer for value in record.values())
        total += len(record)
    return found / total


@torch.no_grad()
def perplexity(model: BaseModel, source: Source, windows: int = 40, length: int = 512) -> float:
    """Of held-out text, in windows of `length` tokens read from their start."""
    text = source.held_out[: windows * length]
    rows = [text[at : at + length] for at in range(0, len(text) - length + 1, length)]
    device = model.embed_tokens.weight.device
    total = 0.0
    for row in rows:
        tokens = torch.from_numpy(row.astype(np.int64))[None].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            total += float(model.loss(tokens, torch.ones_like(tokens, dtype=torch.float32)))
    return math.exp(total / max(1, len(rows)))


SAMPLE_PROMPTS = (
    "- ferry name: Marisol Tern\n- seats: 1,284\n- fare: $37.50\n\nWhat is the fare?",
    "Describe this lighthouse in a few sentences.\n\n- height: 41.5 m\n- built: 12 May 1871\n"
    "- keeper: Odile Brandt\n- visitors: 23,906\n- paint: red and white",
    "Hello! Can you help me to find a restaurant in San Jose?",
    "A shop sells 12 apples a day. How many apples does it sell in 5 days?",
    "- spade\n- kettle\n- violin\n- ladder\n\nWhat is the third item?",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="text files, for perplexity")
    parser.add_argument("--folder", type=Path, required=True, help="an exported model folder")
    parser.add_argument("--cache", type=Path, default=Path("build/base_model/tokens"))
    parser.add_argument("--count", type=int, default=200, help="lookups a probe")
    parser.add_argument("--seed", type=int, default=2026, help="another seed, other questions")
    args = parser.parse_args()
    from recipes.base_model.export import load_folder

    model, tokenizer = load_folder(args.folder)
    lookups = probes(tokenizer, args.count, args.seed)
    accuracies = {name: lookup_accuracy(model, tokenizer, held) for name, held in lookups.items()}
    accuracies["prose_5"] = prose_accuracy(model, tokenizer, args.count // 8, args.seed)
    print(json.dumps({"probes": accuracies}))
    sources = load_sources(args.files, tokenizer, args.cache, 0)
    print(json.dumps({"perplexity": {each.name: perplexity(model, each) for each in sources}}))
    prompts = [chat_prompt(prompt) for prompt in SAMPLE_PROMPTS]
    for prompt, answer in zip(SAMPLE_PROMPTS, greedy(model, tokenizer, prompts, 120), strict=True):
        print(f"\n> {prompt}\n{answer}")


if __name__ == "__main__":
    main()
