"""What each format costs the shipped model, held against what it cost before: no regressions.

Measured on the model's own greedy answers, as they are served: the share of places where bfloat16
and the format hold the same token likeliest. It is a fact of the weights and of how they are
rounded; on another processor sums are rounded otherwise, hence the tolerance.
"""

import random
from pathlib import Path

import pytest

from quickmatch.core.sampling import SamplingParams
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.quantization.quality import compare
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.engine.wire import Generate

pytestmark = pytest.mark.slow
FOLDER = Path(model_source(SHIPPED_MODEL))
TOLERANCE = 0.01
STORED = {
    "int8": 0.988,
    "int4": 0.928,
    "int4-asym": 0.941,
    "mxfp4": 0.924,
    "int8 keys and values": 0.996,
}


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Prompts with the answers that the model gives to them in bfloat16."""
    chance, tokenizer = random.Random(3), Tokenizer.from_folder(FOLDER)
    config = EngineConfig(model=str(FOLDER))
    engine = Engine(ModelRunner(config), config)
    prompts = {}
    for number in range(40):
        names = chance.sample(["income", "age", "term", "rate", "balance", "limit", "score"], 4)
        record = "\n".join(f"- {name}: {chance.randrange(10_000)}" for name in names)
        text = (
            f"<|im_start|>user\nExplain this record:\n{record}<|im_end|>\n<|im_start|>assistant\n"
        )
        prompts[str(number)] = tokenizer.encode(text, add_special_tokens=False)
    answers: dict[str, list[int]] = {name: [] for name in prompts}
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    for name, prompt in prompts.items():
        request = Generate(request_id=name, prompt_token_ids=prompt, sampling=params)
        assert engine.add(request) is None
    while engine.has_work:
        for event in engine.step():
            answers[event.request_id] += event.token_ids
    return [prompts[name] + answers[name] for name in prompts]


@pytest.mark.parametrize("form", STORED)
def test_a_format_agrees_as_often_as_it_did(form: str, texts: list[list[int]]) -> None:
    plain = EngineConfig(model=str(FOLDER))
    if form == "int8 keys and values":
        other = EngineConfig(model=str(FOLDER), kv_cache_dtype="int8")
    else:
        other = EngineConfig(model=str(FOLDER), quantization=form)
    (found,) = compare(plain, [other], texts)
    assert found.top1_agreement >= STORED[form] - TOLERANCE
