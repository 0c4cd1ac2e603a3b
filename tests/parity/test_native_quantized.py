"""The native pass on weights of few bits, beside torch's on the same rounded weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.core.sampling import SamplingParams
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.config import EngineConfig, Quantization
from quickmatch.engine.engine import Engine
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.native_pass import NativePass, in_place, why_not_native
from quickmatch.engine.quantization.formats import FORMATS, QuantizedTensor, find_format
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.torch_pass import TorchPass
from quickmatch.engine.wire import Generate
from tests.parity.native_steps import (
    CPU,
    KINDS,
    SIZE,
    check_bits_of_rows,
    check_moved_nodes,
    folders,
    run,
    steps,
)

__all__ = ["folders"]  # a fixture
pytestmark = pytest.mark.usefixtures("isa")


INT8_KV = "int8 KV"


def native_of(folder: Path, form: str) -> NativePass:
    """form: a weight format, or INT8_KV for bf16 weights with keys and values in 8 bits."""
    model = read_model_config(folder)
    reason = why_not_native(model, SIZE.block_size, dtype=torch.bfloat16, device=CPU)
    if reason is not None:
        pytest.skip(reason)
    if form == INT8_KV:
        return NativePass(folder, model, replace(SIZE, has_int8_kv=True), num_threads=2)
    return NativePass(folder, model, SIZE, num_threads=2, form=find_format(form))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_rounded_weights(
    kind: str, form: str, folders: dict[str, Path]
) -> None:
    native, model = native_of(folders[kind], form), read_model_config(folders[kind])
    right_of = TorchPass(
        folders[kind], model, SIZE, dtype=torch.float32, device=CPU, form=find_format(form)
    )
    unrounded_of = TorchPass(folders[kind], model, SIZE, dtype=torch.float32, device=CPU)
    for batch in steps():
        right, unrounded = run(right_of, batch), run(unrounded_of, batch)
        error = (run(native, batch) - right).abs().mean()
        assert error < 0.06 * right.abs().mean()  # of rows in 8 bits, and bfloat16 between products
        if form != "int8":
            assert error < 0.5 * (right - unrounded).abs().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_in_eight_bits_are_nearly_those_in_sixteen(
    kind: str, folders: dict[str, Path]
) -> None:
    native, model = native_of(folders[kind], INT8_KV), read_model_config(folders[kind])
    right_of = TorchPass(folders[kind], model, SIZE, dtype=torch.float32, device=CPU)
    exact_of = NativePass(folders[kind], model, SIZE)
    for batch in steps():
        right = run(right_of, batch)
        error = (run(native, batch) - right).abs().mean()
        assert error < 0.05 * right.abs().mean()
        assert error > (run(exact_of, batch) - right).abs().mean()  # Guards: it was not rounded


def test_accepted_nodes_keep_their_bits_when_they_are_moved(folders: dict[str, Path]) -> None:
    check_moved_nodes(native_of(folders["qwen3-wide-heads"], INT8_KV))


@pytest.mark.parametrize("context", [290, 291])
@pytest.mark.parametrize("form", [*FORMATS, INT8_KV])
def test_a_row_has_the_same_bits_alone_beside_others_and_in_a_tree(
    form: str, context: int, folders: dict[str, Path]
) -> None:
    check_bits_of_rows(native_of(folders["qwen2"], form), context)


def texts_of(quantization: Quantization, drafters: tuple[str, ...]) -> list[list[int]]:
    """What the shipped model says to a few prompts, some after the index has seen them."""
    config = EngineConfig(
        model=model_source(SHIPPED_MODEL),
        quantization=quantization,
        max_model_len=512,
        speculation=SpeculationConfig(drafters=drafters, is_adaptive=False),
    )
    engine = Engine(ModelRunner(config), config)
    out: list[list[int]] = []
    for turn in range(2):
        for i, temperature in enumerate((0.0, 0.0, 0.9)):
            sampling = SamplingParams(temperature=temperature, seed=i, max_tokens=40)
            prompt = [5 + i, 90, 300 + i, 17, 90, 300 + i]
            request = Generate(request_id=f"{turn}.{i}", prompt_token_ids=prompt, sampling=sampling)
            assert engine.add(request) is None
        said: dict[str, list[int]] = {}
        while engine.has_work:
            for event in engine.step():
                said.setdefault(event.request_id, []).extend(event.token_ids)
        out += said.values()
    if drafters:
        stats = engine.stats().speculation
        assert stats is not None
        assert stats.num_accepted > 40
    return out


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_speculation_changes_no_token_of_a_quantized_model(quantization: Quantization) -> None:
    plain = texts_of(quantization, ())
    assert texts_of(quantization, ("suffix",)) == plain
    assert plain != texts_of("none", ())  # Guards: the setting does nothing


def test_weights_take_the_bytes_of_their_format(folders: dict[str, Path]) -> None:
    sizes = {}
    for form in ("int8", "int4"):
        native = native_of(folders["llama-tied-mha"], form)
        sizes[form] = native.num_bytes
    model = read_model_config(folders["llama-tied-mha"])
    dense = NativePass(folders["llama-tied-mha"], model, SIZE).num_bytes
    assert sizes["int8"] < 0.55 * dense
    assert sizes["int4"] < 0.7 * sizes["int8"]


def test_int8_kv_is_half_the_memory_and_refused_where_it_cannot_be(
    folders: dict[str, Path],
) -> None:
    model = str(folders["qwen3-wide-heads"])
    config = EngineConfig(model=model, kv_memory_bytes=1 << 22, dtype="bfloat16")
    blocks = ModelRunner(config).num_blocks
    assert ModelRunner(replace(config, kv_cache_dtype="int8")).num_blocks > 1.85 * blocks
    with pytest.raises(ConfigError, match="needs the native decoder"):
        ModelRunner(replace(config, kv_cache_dtype="int8", dtype="float32"))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(Exception, match="int8"):
        find_format("int3")


def test_quantized_twice_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders["qwen2"]
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = (tmp_path / "config.json").read_text()
    stored = '"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32},'
    (tmp_path / "config.json").write_text(config.replace("{", "{" + stored, 1))
    model = read_model_config(tmp_path)
    with pytest.raises(ModelLoadError, match="already"):
        TorchPass(tmp_path, model, SIZE, dtype=torch.float32, device=CPU, form=find_format("int8"))


def test_groups_that_the_kernels_do_not_take_become_dense() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 64), generator=generator).to(torch.uint8)
    scales = torch.rand(32, 8, generator=generator)  # groups of 8 inputs
    weight = QuantizedTensor(codes, scales, None, 4)
    found = in_place(weight)
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, weight.dequantized().bfloat16())
