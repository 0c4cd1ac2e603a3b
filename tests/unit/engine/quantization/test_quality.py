"""The measure of what few bits cost, beside the same figures from transformers."""

import math
from pathlib import Path

import pytest
import torch

from quickmatch.core.errors import ConfigError
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.quantization.quality import compare
from tests.parity.models import VOCAB, make_model, save_model

GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(1, VOCAB, (n,), generator=GENERATOR).tolist() for n in (200, 1, 40, 129)]


def config(folder: Path) -> EngineConfig:
    return EngineConfig(model=str(folder), dtype="float32", num_threads=1)


def test_figures_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    """Two different models; texts of one token say nothing, chunks join without a seam."""
    models = [make_model("llama"), make_model("llama", seed=1)]
    other = save_model(models[1], tmp_path)
    steps: list[tuple[int, int]] = []
    found, itself = compare(
        config(folder),
        [config(other), config(folder)],
        TEXTS,
        progress=lambda *step: steps.append(step),
    )
    assert itself.top1_agreement == 1.0
    losses, best = [0.0, 0.0], [[], []]  # type: ignore[var-annotated]
    for i, model in enumerate(models):
        for ids in TEXTS:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, :-1]
            own = torch.tensor(ids[1:], dtype=torch.int64)
            losses[i] += float(torch.nn.functional.cross_entropy(logits, own, reduction="sum"))
            best[i] += logits.argmax(-1).tolist()
    num_tokens = 199 + 39 + 128
    assert found.num_tokens == len(best[0]) == num_tokens
    assert found.perplexity_reference == pytest.approx(math.exp(losses[0] / num_tokens), rel=1e-4)
    assert found.perplexity_quantized == pytest.approx(math.exp(losses[1] / num_tokens), rel=1e-4)
    agreed = sum(a == b for a, b in zip(*best, strict=True)) / num_tokens
    assert found.top1_agreement == pytest.approx(agreed, abs=0.01)
    assert steps[-1] == (3 * num_tokens, 3 * num_tokens)


def test_a_model_agrees_with_itself_and_texts_are_cut_to_its_context(folder: Path) -> None:
    (found,) = compare(config(folder), [config(folder)], [TEXTS[0] * 2])  # 400 of 256 tokens
    assert found.top1_agreement == 1.0
    assert found.num_tokens == 255


def test_no_text_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no text of two tokens"):
        compare(config(folder), [config(folder)], [[3], []])
