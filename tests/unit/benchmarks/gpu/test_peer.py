"""transformers' continuous batching as a contender: it extends as many tokens as it is asked."""

from pathlib import Path

import pytest
import torch

from benchmarks.models import Shape, make_model
from benchmarks.workers.transformers_batching import TransformersBatchingContender

TINY = Shape(
    name="tiny",
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    vocab_size=512,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its own, of its own parts
def test_texts_are_those_of_generate(tmp_path: Path) -> None:
    folder = make_model(TINY, root=tmp_path)
    peer = TransformersBatchingContender()
    sizes = {"num_seqs": 2, "prompt_len": 8, "new_tokens": 4}
    cache = {"num_blocks": 32, "max_batch_tokens": 32}
    peer.load(str(folder), {"device": "cpu", "dtype": "float32", "cache": cache, **sizes})
    prompts = [[5, 6, 7], [9, 10, 11, 12]]
    right = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = peer._model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4,
            min_new_tokens=4,
        )  # fmt: skip
        right.append(out[0, len(prompt) :].tolist())
    assert peer.generate(prompts, 4) == right
