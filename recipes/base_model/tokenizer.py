"""Trains the tokenizer: byte-level BPE, digits one by one, ChatML specials.

Digits are split because a model of this size copies a number digit by digit; with merged digits
each rare number would be a token that it has hardly met. A space before a number stays a token
of its own, so a digit has one id wherever it stands.

    python -m recipes.base_model.tokenizer --out build/tokenizer data/*.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from recipes.base_model.text import HELD_OUT_EVERY, read_records

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)
VOCAB_SIZE = 8192
MAX_LENGTH = 2048

# The generation markers let transformers' `return_assistant_tokens_mask` find what to learn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ (message['content'] or '') + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def training_texts(paths: list[Path], max_chars_a_source: int) -> Iterator[str]:
    """Texts of each file, held-out records left out, spread over the file up to the bound."""
    for path in paths:
        size = sum(len(text) for text in read_records(path))
        stride = max(1, size // max_chars_a_source)
        for index, text in enumerate(read_records(path)):
            held_out = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
            if index % stride == 0 and not held_out:
                yield text


def train_tokenizer(texts: Iterator[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Byte-level BPE; the specials take the ids 0, 1, 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_KEEP_LINES)
    parser.add_argument("files", nargs="+", type=Path, help="text files (.jsonl, .jsonl.gz, .txt)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--max-chars", type=int, default=6_000_000, help="bound for each file")
    args = parser.parse_args()
    tokenizer = train_tokenizer(training_texts(args.files, args.max_chars))
    save_tokenizer(tokenizer, args.out)
    print(f"{tokenizer.get_vocab_size()} tokens in {args.out}")


_KEEP_LINES = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
