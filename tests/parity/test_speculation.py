"""Speculation is lossless: every drafter through the real engine, against plain decoding.

Drafts are forced on (`is_adaptive=False`), so that thousands of tokens pass through verification:
what a draft got right and what it got wrong; one test has all drafters and the controller together.
In float32, where rounding flips no choice, tokens must be the same one by one; the law of sampling
is held to plain sampling's by a chi-square test.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import peft
import pytest
import torch
from scipy.stats import chi2_contingency
from transformers import AutoModelForCausalLM

from quickmatch.core.grammar import Grammar
from quickmatch.core.sampling import SamplingParams
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.folder import resolve_model
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.engine.wire import Generate, SpeculationStats
from tests.e2e.tiny_head import make_head
from tests.parity.conftest import MadeModel

# peft 0.21 asks transformers for a property that transformers 5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

FOLDER = Path(resolve_model(model_source(SHIPPED_MODEL)))
DRAFTERS = ["suffix", "prediction", "head", "draft_model"]
ADAPTERS = [None, "a@1", "b@1"]
RECORD = Grammar(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "sum": {"type": "integer", "maximum": 99999},
                "note": {"type": "string", "maxLength": 30},
                "is_good": {"type": "boolean"},
            },
            "required": ["sum", "note", "is_good"],
            "additionalProperties": False,
        }
    ),
)


def make_engine(
    folder: Path,
    drafters: Sequence[str],
    work: Path,
    adapters: Iterable[Path],
    *,
    is_adaptive: bool = False,
    head_of: str = "",
) -> Engine:
    """An engine with these drafters; its head is random, its draft model the target."""
    speculation = SpeculationConfig(
        drafters=tuple(drafters),
        draft_model=str(folder) if "draft_model" in drafters else "",
        is_adaptive=is_adaptive,
        max_depth=5,
        max_draft_tokens=9,
    )
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        block_size=4,
        kv_memory_bytes=1 << 25,
        max_num_batched_tokens=256,
        num_threads=1,
        speculation=speculation,
    )
    runner = ModelRunner(config)
    engine = Engine(runner, config)
    for path in adapters:
        engine.load_adapter(f"{path.name}@1", str(path))
    if "head" in drafters:
        head = make_head(work / "head", folder, seed=3)
        engine.swap_draft(head_of, "head@1", runner.read_draft(str(head)))
    return engine


def answer(engine: Engine, requests: list[Generate], at_once: int) -> dict[str, list[int]]:
    """Run the requests, so many at a time; return their tokens."""
    waiting, tokens = list(requests), {request.request_id: [] for request in requests}
    while waiting or engine.has_work:
        while waiting and engine.scheduler.num_live < at_once:
            assert engine.add(waiting.pop(0)) is None
        for event in engine.step():
            assert event.error is None
            tokens[event.request_id] += event.token_ids
    engine.scheduler.check_integrity()
    assert engine.stats().num_blocks_used == 0
    return tokens


def speculation_of(engine: Engine) -> SpeculationStats:
    found = engine.stats().speculation
    assert found is not None
    return found


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two random adapters of the shipped model, named a and b."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        base = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
        model = peft.get_peft_model(base, config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.normal_(0, 0.03)
        model.save_pretrained(folder / name)
    return [folder / "a", folder / "b"]


def requests_of(tokenizer: Tokenizer, seed: int) -> list[Generate]:
    """Records to describe, with every way of choosing tokens and three sets of weights."""
    chance = random.Random(seed)
    kinds: list[dict[str, object]] = [
        {"temperature": 0.0, "ignore_eos": True},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.8, "top_p": 0.9, "seed": 6, "logprobs": 2, "ignore_eos": True},
        {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
        {"temperature": 1.0, "top_k": 20, "min_p": 0.02, "seed": 7, "presence_penalty": 0.5},
        {"temperature": 0.0, "min_tokens": 40, "logit_bias": {13: 1.5}},
        {"temperature": 0.0, "grammar": RECORD},
        {"temperature": 1.0, "seed": 8, "grammar": RECORD},
    ]
    made = []
    for number in range(24):
        fields = [f"- {k}: {chance.randrange(10_000)}" for k in ("sum", "age", "term", "rate")]
        text = f"<|im_start|>user\nDescribe:\n{chr(10).join(fields)}<|im_end|>\n"
        prompt = tokenizer.encode(text + "<|im_start|>assistant\n", add_special_tokens=False)
        guess = f"The sum is {chance.randrange(10_000)}. The age is {chance.randrange(100)}."
        made.append(
            Generate(
                request_id=str(number),
                prompt_token_ids=prompt,
                sampling=SamplingParams(max_tokens=60, **kinds[number % len(kinds)]),  # type: ignore[arg-type]
                adapter=ADAPTERS[number % len(ADAPTERS) if number % 4 else 0],
                prediction_token_ids=tokenizer.encode(guess, add_special_tokens=False),
            )
        )
    return made


def check_records(requests: list[Generate], answers: dict[str, list[int]]) -> None:
    """Outputs that a schema binds are such records, where they had the room to end."""
    tokenizer, num_whole = Tokenizer.from_folder(FOLDER), 0
    for request in requests:
        if request.sampling.grammar is not None:
            tokens = answers[request.request_id]
            if len(tokens) < 60:
                record = json.loads(tokenizer.decode(tokens))
                assert set(record) == {"sum", "note", "is_good"}
                num_whole += 1
    assert num_whole >= 2


@pytest.mark.parametrize("drafter", [*DRAFTERS, "grammar"])
def test_tokens_are_those_of_plain_decoding(
    drafter: str, adapters: list[Path], tmp_path: Path
) -> None:
    """Greedy and seeded, penalties and logprobs, base and adapters mixed: token for token."""
    requests = requests_of(Tokenizer.from_folder(FOLDER), seed=1)
    plain = answer(make_engine(FOLDER, (), tmp_path, adapters), requests, 6)
    check_records(requests, plain)
    engine = make_engine(FOLDER, [drafter], tmp_path, adapters)
    for at_once in (6, 1):  # the second time the suffix index knows most of it
        assert answer(engine, requests, at_once) == plain
    stats = speculation_of(engine)
    if drafter == "grammar":  # of structured requests alone, and it knows
        assert stats.num_accepted > 0.9 * stats.num_proposed > 50
        return
    assert stats.num_proposed > 200
    if drafter == "draft_model":  # of the target itself; adapters and penalties still differ
        assert stats.num_accepted > 0.3 * stats.num_proposed
    if drafter == "suffix":
        assert stats.num_accepted > 200


def test_all_drafters_under_the_controller_change_no_token(
    adapters: list[Path], tmp_path: Path
) -> None:
    """Merged trees of several drafters, chosen by expected speed: token for token."""
    requests = requests_of(Tokenizer.from_folder(FOLDER), seed=2)
    plain = answer(make_engine(FOLDER, (), tmp_path, adapters), requests, 6)
    drafters = [*DRAFTERS, "grammar"]
    # One adapter has a head; the draft model drafts for the base and the other one.
    engine = make_engine(FOLDER, drafters, tmp_path, adapters, is_adaptive=True, head_of="a@1")
    assert engine.speculator is not None
    engine.speculator.measure_costs(max_num_seqs=8)
    for at_once in (6, 1, 3):
        assert answer(engine, requests, at_once) == plain
    stats = speculation_of(engine)
    assert sum(source.num_proposed > 0 for source in stats.sources.values()) >= 3
    assert stats.num_accepted > 200
    assert sum(one.num_accepted for one in stats.adapters.values()) == stats.num_accepted
    assert sum(one.num_verified for one in stats.adapters.values()) == stats.num_verified
    assert set(stats.adapters) == {"", *engine.runner.adapters}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "a@1"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_law_is_that_of_plain_sampling(
    drafter: str,
    adapter: str | None,
    made: Callable[[str], MadeModel],
    tmp_path: Path,
) -> None:
    """20,000 answers of three tokens each, unseeded, with top-p, against as many plain ones."""
    _, folder = made("llama")
    path = tmp_path / "a"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False)).save_pretrained(path)
    params = SamplingParams(temperature=0.5, top_p=0.7, max_tokens=3, ignore_eos=True)

    def draws(engine: Engine, guess: tuple[int, ...]) -> Counter[tuple[int, ...]]:
        requests = [
            Generate(
                request_id=str(i),
                prompt_token_ids=[3, 5, 7, 5],
                sampling=params,
                adapter=adapter,
                prediction_token_ids=list(guess),
            )
            for i in range(20_000)
        ]
        return Counter(tuple(t) for t in answer(engine, requests, 64).values())

    plain = draws(make_engine(folder, (), tmp_path, [path]), ())
    engine = make_engine(folder, [drafter], tmp_path, [path])
    drafted = draws(engine, plain.most_common(1)[0][0])
    assert speculation_of(engine).num_proposed > 1_000
    common = [pair for pair, count in plain.most_common(60) if count >= 20]
    table = [
        [counts[pair] for pair in common] + [sum(counts.values()) - sum(counts[p] for p in common)]
        for counts in (plain, drafted)
    ]
    assert chi2_contingency(table).pvalue > 1e-3
