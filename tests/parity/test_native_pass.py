"""The native pass beside torch's; a row's bits are the same whatever stands beside it."""

from pathlib import Path

import pytest
import torch

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.batch import StepBatch
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.forward_pass import PassSize
from quickmatch.engine.model_config import ModelConfig, read_model_config
from quickmatch.engine.native_pass import NativePass, kernels, why_not_native
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.torch_pass import TorchPass
from quickmatch.engine.wire import Generate
from tests.parity.native_steps import (
    CPU,
    KINDS,
    SIZE,
    TABLES,
    check_bits_of_rows,
    check_moved_nodes,
    folders,
    run,
    span_of,
    steps,
    text_of,
)

__all__ = ["folders"]  # a fixture
pytestmark = pytest.mark.usefixtures("isa")


def load(folder: Path) -> tuple[NativePass, TorchPass, TorchPass, ModelConfig]:
    """Return the native pass, and torch's in bfloat16 and in float32."""
    model = read_model_config(folder)
    reason = why_not_native(model, SIZE.block_size, dtype=torch.bfloat16, device=CPU)
    if reason is not None:
        pytest.skip(reason)
    others = [
        TorchPass(folder, model, SIZE, dtype=dtype, device=CPU)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    return NativePass(folder, model, SIZE), others[0], others[1], model


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_nearer_to_float32_than_torch_in_bfloat16(
    kind: str, folders: dict[str, Path]
) -> None:
    native, in_bfloat16, in_float32, _ = load(folders[kind])
    for batch in steps():
        right = run(in_float32, batch)
        error = (run(native, batch) - right).abs()
        usual = (run(in_bfloat16, batch) - right).abs()
        assert error.mean() < usual.mean()
        assert error.mean() < 0.02 * right.abs().mean()


@pytest.mark.parametrize("context", [290, 291])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_beside_others_and_in_a_tree(
    kind: str, context: int, folders: dict[str, Path]
) -> None:
    check_bits_of_rows(load(folders[kind])[0], context)


def test_accepted_nodes_are_moved_to_their_places(folders: dict[str, Path]) -> None:
    check_moved_nodes(load(folders["qwen2"])[0])


def test_hidden_states_are_those_of_float32(folders: dict[str, Path]) -> None:
    native, _, in_float32, _ = load(folders["llama"])
    batch = steps()[0]
    rows = [len(batch.token_ids) - 1]
    got, right = (p.run(batch, rows, (0, 2)).aux for p in (native, in_float32))
    for ours, theirs in zip(got, right, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).abs().mean() < 0.02 * theirs.abs().mean()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_ids", 199, "token id 199 is not below 199"),
        ("positions", -1, "position -1 is not below 512"),
        ("slots", 120 * 32, "slot 3840 is not below 3840"),
    ],
)
def test_numbers_out_of_range_are_refused(
    field: str, value: int, message: str, folders: dict[str, Path]
) -> None:
    native, *_ = load(folders["llama"])
    batch = StepBatch([], [], [], [])
    span_of(batch, [1, 2, 3], 0, TABLES[0])
    getattr(batch, field)[1] = value
    with pytest.raises(IndexError, match=message):
        run(native, batch)


def test_what_it_cannot_run_is_told(folders: dict[str, Path]) -> None:
    model = read_model_config(folders["llama"])
    for options, reason in (
        ({"dtype": torch.float32, "device": CPU}, "the dtype is float32"),
        ({"dtype": torch.bfloat16, "device": torch.device("meta")}, "the device is meta"),
    ):
        assert why_not_native(model, SIZE.block_size, **options) == reason
    load(folders["llama"])
    small = PassSize(num_blocks=8, block_size=4, max_model_len=32)
    told = why_not_native(model, small.block_size, dtype=torch.bfloat16, device=CPU)
    assert told == "a width is no multiple of 16"


def emitted(drafters: tuple[str, ...], temperature: float) -> tuple[dict[str, list[int]], int]:
    """Serve fourteen requests of the shipped model, six at a time; return tokens and accepted."""
    config = EngineConfig(
        model=str(model_source(SHIPPED_MODEL)),
        dtype="bfloat16",
        max_num_seqs=6,
        max_model_len=512,
        kv_memory_bytes=1 << 26,
        speculation=SpeculationConfig(drafters=drafters, is_adaptive=False),
    )
    engine = Engine(ModelRunner(config), config)
    out: dict[str, list[int]] = {}
    for number in range(14):
        words = text_of(number % 5, 12)
        engine.add(
            Generate(
                request_id=str(number),
                prompt_token_ids=[token + 500 for token in words * 3],
                sampling=SamplingParams(temperature=temperature, seed=number, max_tokens=96),
            )
        )
        out[str(number)] = []
    while engine.has_work:
        for event in engine.step():
            out[event.request_id] += event.token_ids
    stats = engine.stats().speculation
    return out, 0 if stats is None else stats.num_accepted


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_change_no_token_in_bfloat16(temperature: float, folders: dict[str, Path]) -> None:
    load(folders["llama"])  # skips where there is no native pass
    plain, _ = emitted((), temperature)
    drafted, num_accepted = emitted(("suffix",), temperature)
    assert drafted == plain
    assert sum(map(len, plain.values())) > 1000
    assert num_accepted > 50


def test_an_instruction_set_that_is_not_there_is_told(
    isa: str, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    load(folders["llama"])
    assert kernels().__name__.rsplit(".", 1)[-1] == isa  # type: ignore[attr-defined]
    monkeypatch.setenv("QUICKMATCH_ISA", "sse2")
    with pytest.raises(ConfigError, match=r"'sse2'; this processor runs: .*avx2"):
        kernels()
