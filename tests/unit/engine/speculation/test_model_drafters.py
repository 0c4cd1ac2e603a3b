"""Heads of adapters that come and go in memory, on a tiny model."""

from pathlib import Path

import pytest

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.wire import Generate
from tests.e2e.tiny_head import make_head
from tests.e2e.tiny_model import make_adapter, make_model


def request(adapter: str) -> Generate:
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    return Generate(
        request_id=adapter, prompt_token_ids=[5, 6, 7, 8], sampling=params, adapter=adapter
    )


def num_drafted(engine: Engine) -> int:
    """Tokens that heads have proposed so far."""
    stats = engine.stats().speculation
    assert stats is not None
    return stats.sources["head"].num_proposed


def test_a_head_waits_for_an_adapter_that_is_only_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Guards: reading an adapter between two steps for its head's sake, or refusing the head where
    # all adapters in memory are in use.
    folder = make_model(tmp_path / "tiny")
    speculation = SpeculationConfig(drafters=("head",), is_adaptive=False)
    config = EngineConfig(
        model=str(folder), max_adapters=1, kv_memory_bytes=1 << 20, num_threads=1,
        speculation=speculation,
    )  # fmt: skip
    runner = ModelRunner(config)
    engine = Engine(runner, config)
    for seed, name in enumerate(("red", "blue")):
        engine.load_adapter(f"{name}@1", str(make_adapter(tmp_path / name, seed=seed)))
    head = runner.read_draft(str(make_head(tmp_path / "head", folder, seed=3)))
    assert engine.add(request("blue@1")) is None  # in memory, and in use
    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "read_adapter", lambda *_: pytest.fail("an adapter was read"))
        engine.swap_draft("red@1", "head@1", head)
    assert runner.adapters == ["blue@1"]
    while engine.has_work:
        engine.step()
    assert num_drafted(engine) == 0
    assert engine.add(request("red@1")) is None
    while engine.has_work:
        engine.step()
    assert num_drafted(engine) > 0
