"""A tiny random Llama with a small tokenizer, made on the spot, and a home to train it in."""

import json
import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from quickmatch.core.settings import Home
from quickmatch.store.documents import Model, ModelKind
from quickmatch.store.open import open_store
from quickmatch.tuning import datasets

MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\ntools: ' + tools[0]['name'] + '<|im_end|>\\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WORDS = [
    "credit",
    "income",
    "rating",
    "good",
    "poor",
    "normal",
    "months",
    "explain",
    "because",
    "short",
    "long",
    "history",
]


def make_rows(num_rows, seed=0):
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        words = rng.choices(WORDS, k=rng.randint(2, 12))
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": " ".join(words)},
                    {"role": "assistant", "content": "because " + " ".join(reversed(words))},
                ],
                "metadata": {"tags": {"rating": rng.choice(["good", "poor"])}},
            }
        )
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = [
        AddedToken(t, special=True, normalized=False)
        for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "user", "assistant", "system"] * 10, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=MARKED_TEMPLATE,
    )


@pytest.fixture(scope="session")
def tiny_folder(tokenizer, tmp_path_factory):
    """A Hugging Face folder: 2 layers, 32 wide, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def store(home):
    store = open_store(home)
    yield store
    store.close()


@pytest.fixture
def base(store, tiny_folder):
    model = Model(id="tiny", created_at=1.0, model_kind=ModelKind.BASE, path=str(tiny_folder))
    store.insert(model)
    return model


@pytest.fixture
def dataset(store, home, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", make_rows(48))
    return datasets.create_from_file(store, home, "rows", file)
