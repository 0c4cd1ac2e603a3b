"""Two small tokenizers, trained here: byte-level like Llama 3 and Qwen, and SentencePiece-like."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIALS = ["<|bos|>", "<|im_start|>", "<|im_end|>"]

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Credit cards are rated good, normal or poor; a rating is explained in plain words.",
    "Grüße aus Köln, où l'on parle français. Привет, мир! 你好，世界。こんにちは 🙂👍🏽",
    "  indented\n\n\tlines and   spaces",
] * 5


def random_text(rng: random.Random, length: int) -> str:
    """Text of all sorts: words, spaces, line ends, two- to four-byte characters."""
    alphabets = [
        "abcdefgh ",
        "the quick credit card ",
        " \n\t",
        "éüßñø",
        "Приветмир",
        "你好世界汉字",
        "🙂👍🏽🇩🇪👩\u200d👩\u200d👧",
        "\u0301\u0308",
        "0123456789.,;!?-",
    ]
    pieces = []
    while sum(map(len, pieces)) < length:
        alphabet = rng.choice(alphabets)
        pieces.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 6))))
    return "".join(pieces)


def train_byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    bos = backend.token_to_id(SPECIALS[0])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", pair=None, special_tokens=[(SPECIALS[0], bos)]
    )
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("two words")])
    return backend


def train_sentencepiece() -> Tokenizer:
    """As Llama 2's and Mistral's tokenizer.json have it: metaspace, byte fallback, strip."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # to train only
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        show_progress=False,
        limit_alphabet=80,
    )
    backend.train_from_iterator((line[:60] for line in CORPUS[:8]), trainer)
    # Byte tokens have to be plain vocabulary, not special: rebuild without the added ones.
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    state["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(state))


def write_folder(folder: Path, backend: Tokenizer, **config: Any) -> Path:
    """Write a model folder's tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
