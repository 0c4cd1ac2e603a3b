"""Layers of other tools' checkpoints, packed here by hand: the matrix they stand for."""

import pytest
import torch
from torch import Tensor

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.quantization.formats import QuantizedTensor
from quickmatch.engine.quantization.stored import Method, StoredFormat
from tests.unit.engine.quantization.layouts import Tensors, awq_words_of, random_codes, words_of

OUT, IN, GROUPS = 16, 64, 2
SCALES = torch.rand(OUT, GROUPS, generator=torch.Generator().manual_seed(1)) + 0.5


def form(method: Method, **options: object) -> StoredFormat:
    return StoredFormat(method=method, source="config.json", **options)  # type: ignore[arg-type]


def expected(codes: Tensor, zeros: Tensor | int) -> Tensor:
    """[out, in]: (code - zero) * scale, group by group."""
    spread = SCALES.repeat_interleave(IN // GROUPS, 1)
    if isinstance(zeros, Tensor):
        zeros = zeros.float().repeat_interleave(IN // GROUPS, 1)
    return (codes.float() - zeros) * spread


def read(stored: StoredFormat, tensors: dict[str, Tensor]) -> QuantizedTensor:
    named = Tensors({f"layer.{name}": tensor for name, tensor in tensors.items()})
    found = stored.read_linear(named, "layer", OUT, IN)
    assert isinstance(found, QuantizedTensor)
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("less_one", [True, False])
def test_gptq(bits: int, less_one: bool) -> None:
    codes, zeros = random_codes(OUT, IN, bits), random_codes(OUT, GROUPS, bits, seed=2)
    stored_zeros = (zeros.int() - int(less_one)) % (1 << bits)  # [out, groups]
    found = read(
        form("gptq", zeros_less_one=less_one),
        {
            "qweight": words_of(codes.tolist(), bits).T,
            "qzeros": words_of(stored_zeros.T.tolist(), bits),
            "scales": SCALES.T.half(),
            "g_idx": torch.arange(IN, dtype=torch.int32) // (IN // GROUPS),
        },
    )
    assert torch.equal(found.codes, codes)
    assert found.zeros is not None
    assert torch.equal(found.zeros, zeros)
    torch.testing.assert_close(found.dequantized(), expected(codes, zeros), rtol=1e-3, atol=1e-2)


def test_gptq_without_zero_points_of_its_own() -> None:
    """All in the middle, as symmetric GPTQ keeps them (lowered by one): none."""
    codes = random_codes(OUT, IN, 4)
    found = read(
        form("gptq", zeros_less_one=True),
        {
            "qweight": words_of(codes.tolist(), 4).T,
            "qzeros": words_of([[7] * OUT] * GROUPS, 4),
            "scales": SCALES.T,
        },
    )
    assert found.zeros is None
    torch.testing.assert_close(found.dequantized(), expected(codes, 8))


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
def test_groups_of_inputs_that_lie_apart_become_dense(method: Method, is_symmetric: bool) -> None:
    codes, zeros = random_codes(OUT, IN, 4), random_codes(OUT, GROUPS, 4, seed=2)
    if is_symmetric:
        zeros = torch.full_like(zeros, 8)
    order = torch.arange(IN, dtype=torch.int32) % GROUPS
    if method == "gptq":
        tensors = {
            "qweight": words_of(codes.tolist(), 4).T,
            "qzeros": words_of(zeros.T.tolist(), 4),
            "scales": SCALES.T,
            "g_idx": order,
        }
    else:
        tensors = {
            "weight_packed": words_of(codes.tolist(), 4),
            "weight_scale": SCALES,
            "weight_zero_point": words_of(zeros.T.tolist(), 4).T,
            "weight_g_idx": order,
        }
    named = Tensors({f"layer.{name}": tensor for name, tensor in tensors.items()})
    found = form(method).read_linear(named, "layer", OUT, IN)
    assert isinstance(found, Tensor)
    right = (codes.float() - zeros.float()[:, order]) * SCALES[:, order]
    assert torch.equal(found, right.bfloat16())


def test_a_group_that_has_no_scales_is_refused() -> None:
    tensors = {
        "qweight": words_of(random_codes(OUT, IN, 4).tolist(), 4).T,
        "qzeros": words_of([[7] * OUT] * GROUPS, 4),
        "scales": SCALES.T,
        "g_idx": torch.arange(IN, dtype=torch.int32) % (GROUPS + 1),
    }
    with pytest.raises(ModelLoadError, match=r"layer\.g_idx names groups beyond the 2 that have"):
        read(form("gptq"), tensors)


def test_awq() -> None:
    codes, zeros = random_codes(OUT, IN, 4), random_codes(OUT, GROUPS, 4, seed=2)
    found = read(
        form("awq"),
        {
            "qweight": awq_words_of(codes.T.tolist()),
            "qzeros": awq_words_of(zeros.T.tolist()),
            "scales": SCALES.T.half(),
        },
    )
    assert torch.equal(found.codes, codes)
    assert found.zeros is not None
    assert torch.equal(found.zeros, zeros)
    torch.testing.assert_close(found.dequantized(), expected(codes, zeros), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_compressed_tensors_packed(bits: int, is_symmetric: bool) -> None:
    codes, zeros = random_codes(OUT, IN, bits), random_codes(OUT, GROUPS, bits, seed=2)
    tensors = {
        "weight_packed": words_of(codes.tolist(), bits),
        "weight_scale": SCALES,
        "weight_shape": torch.tensor([OUT, IN]),
    }
    if not is_symmetric:
        tensors["weight_zero_point"] = words_of(zeros.T.tolist(), bits).T
    found = read(form("compressed-tensors"), tensors)
    assert (found.zeros is None) == is_symmetric
    right = expected(codes, 1 << (bits - 1) if is_symmetric else zeros)
    torch.testing.assert_close(found.dequantized(), right)


def test_compressed_tensors_int8_with_a_scale_a_row() -> None:
    signed = (random_codes(OUT, IN, 8).int() - 128).to(torch.int8)
    scales = torch.rand(OUT, 1).bfloat16()
    found = read(form("compressed-tensors"), {"weight": signed, "weight_scale": scales})
    assert found.scales.shape == (OUT, 1)
    assert found.group_size == IN
    torch.testing.assert_close(found.dequantized(), signed.float() * scales.float())


@pytest.mark.parametrize("shape", [(), (1,), (OUT,), (OUT, 1)])
def test_fp8_with_a_scale_or_one_a_row(shape: tuple[int, ...]) -> None:
    weight = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = torch.rand(shape) + 0.5
    named = Tensors({"layer.weight": weight, "layer.weight_scale": scale})
    found = form("compressed-tensors").read_linear(named, "layer", OUT, IN)
    assert isinstance(found, Tensor)
    spread = scale.reshape(-1, 1).expand(-1, 1) if scale.numel() > 1 else scale.reshape(1, 1)
    assert torch.equal(found, (weight.float() * spread).bfloat16())


def test_fp8_in_blocks_that_do_not_divide() -> None:
    weight = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3) + 0.5  # blocks of 10 x 24 over 16 x 64
    named = Tensors({"layer.weight": weight, "layer.weight_scale_inv": scale})
    found = form("fp8", block=(10, 24)).read_linear(named, "layer", OUT, IN)
    assert isinstance(found, Tensor)
    for row, column in ((0, 0), (9, 23), (10, 24), (15, 63)):
        right = weight[row, column].float() * scale[row // 10, column // 24]
        assert found[row, column] == right.bfloat16()


def test_a_layer_left_as_it_was() -> None:
    weight = torch.randn(OUT, IN).half()
    for method in ("gptq", "compressed-tensors"):
        found = form(method).read_linear(Tensors({"layer.weight": weight}), "layer", OUT, IN)
        assert found is weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_packed": None}, r"no tensor layer\.weight_packed, which config\.json promises"),
        ({"weight_scale": None}, r"no tensor layer\.weight_scale"),
        ({"weight_packed": torch.zeros(OUT, 9, dtype=torch.int32)}, "no width of 4 or 8 bits"),
        ({"weight_packed": torch.zeros(OUT - 1, 8, dtype=torch.int32)}, r"not \[16, 8\]"),
        ({"weight_packed": torch.zeros(OUT, 8)}, r"has the dtype torch\.float32"),
        ({"weight_scale": torch.ones(OUT, 3)}, r"scales \[16, 3\] for a matrix \[16, 64\]"),
        ({"weight_scale": torch.ones(OUT - 1, 2)}, r"scales \[15, 2\]"),
        ({"weight_zero_point": torch.zeros(1, 2, dtype=torch.int32)}, r"not \[2, 2\]"),
        ({"weight_g_idx": torch.arange(IN) % 3}, "names groups beyond the 2"),
    ],
)
def test_wrong_tensors_are_named(changes: dict[str, Tensor | None], message: str) -> None:
    tensors: dict[str, Tensor | None] = {
        "weight_packed": torch.zeros(OUT, 8, dtype=torch.int32),
        "weight_scale": SCALES,
    }
    kept = {n: t for n, t in {**tensors, **changes}.items() if t is not None}
    with pytest.raises(ModelLoadError, match=message):
        read(form("compressed-tensors"), kept)
