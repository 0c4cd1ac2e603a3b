"""A linear layer as quantized checkpoints keep it, and how to read one.

Owns the layouts: compressed-tensors (packed int4, int8 and MXFP4, plain int8, FP8), GPTQ, AWQ and
FP8 in blocks. What a layer's own tensors say counts: its bits follow from the packed width, its
group size from the scales. Activations are never rounded here, whatever a checkpoint was made for.
Where the inputs of a group lie apart (GPTQ's activation order), no format of ours holds the layer
as it is: it becomes a dense one.

Knows no files; tensors come from a `TensorSource`. Invariant: a layer means exactly what its own
tools read from it, or it is refused by name.

Sources: compressed-tensors' pack_quantized, GPTQModel's first and second format, AutoAWQ's GEMM
layout.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.quantization import mxfp4
from quickmatch.engine.quantization.formats import QuantizedTensor, from_codes
from quickmatch.engine.quantization.packing import in_plain_order, num_words, unpack

Method = Literal["compressed-tensors", "gptq", "awq", "fp8"]
REMEDY = "use this model's bf16 weights, or an int4 or int8 checkpoint without that"
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class TensorSource(Protocol):
    """What reading a layer asks of a checkpoint."""

    def __contains__(self, name: str) -> bool: ...

    def read_any(self, name: str) -> Tensor:
        """Return a tensor as it is stored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFormat:
    """How a folder's linear layers are stored. `source` names its config.json in errors."""

    method: Method
    source: str
    zeros_less_one: bool = False  # GPTQ's first format keeps zero points lowered by one
    block: tuple[int, int] = (0, 0)  # rows and inputs that share a scale, of FP8 in blocks

    def read_linear(
        self, checkpoint: TensorSource, name: str, out_features: int, in_features: int
    ) -> QuantizedTensor | Tensor:
        """Read the weight of the linear layer `name`, without its bias.

        Returns codes with scales [out, groups]; or a Tensor [out, in]: bf16 where FP8 is stored or
        the inputs of a group lie apart, the stored dtype where the layer was left unquantized.
        Raises ModelLoadError naming the tensor that is missing or misshapen.
        """
        reader = _Reader(self, checkpoint, name, out_features, in_features)
        if f"{name}.weight" in checkpoint:
            return reader.plain_or_bytes()
        if self.method == "gptq":
            return reader.gptq()
        if self.method == "awq":
            return reader.awq()
        return reader.packed()


@dataclass(frozen=True, slots=True)
class _Reader:
    """One layer, being read."""

    form: StoredFormat
    checkpoint: TensorSource
    name: str
    out: int
    inputs: int

    def plain_or_bytes(self) -> QuantizedTensor | Tensor:
        """A `.weight`: of a layer left as it was, or of one byte a number."""
        weight = self._read("weight", (self.out, self.inputs))
        if weight.dtype in _FLOATS:
            return weight
        if weight.dtype == torch.int8:
            zeros = None
            if f"{self.name}.weight_zero_point" in self.checkpoint:
                zeros = _raised(self._per_row(self._get("weight_zero_point")), 8)
            return self._tensor(_raised(weight, 8), self._scales(), zeros, 8)
        if weight.dtype == torch.float8_e4m3fn:
            return (weight.float() * self._float_scale()).bfloat16()
        raise self._wrong("weight", f"has the dtype {weight.dtype}, which is not supported")

    def packed(self) -> QuantizedTensor | Tensor:
        """compressed-tensors' words along the inputs; zero points lie along the outputs."""
        words = self._get("weight_packed")
        if words.dtype == torch.uint8:
            return self._mxfp4()
        bits = self._bits_of(words, dim=1, suffix="weight_packed")
        self._read("weight_packed", (self.out, num_words(self.inputs, bits)), torch.int32)
        scales, zeros = self._scales(), None
        if f"{self.name}.weight_zero_point" in self.checkpoint:
            stored = self._get("weight_zero_point")
            if stored.dtype == torch.int32:
                shape = (num_words(self.out, bits), scales.shape[1])
                stored = self._read("weight_zero_point", shape)
                zeros = unpack(stored.T, bits, self.out).T
            else:  # before they were packed: signed numbers
                zeros = _raised(self._per_row(stored), bits)
        tensor = self._tensor(unpack(words, bits, self.inputs), scales, zeros, bits)
        return self._in_order(tensor, "weight_g_idx")

    def _mxfp4(self) -> QuantizedTensor:
        """Two codes a byte along the inputs; scales are exponents."""
        if self.inputs % mxfp4.GROUP_SIZE:
            raise self._wrong("weight_packed", f"has {self.inputs} inputs: no groups of 32")
        codes = self._read("weight_packed", (self.out, self.inputs // 2))
        groups = (self.out, self.inputs // mxfp4.GROUP_SIZE)
        exponents = self._read("weight_scale", groups, torch.uint8)
        scales = mxfp4.from_exponents(exponents)
        words = codes.contiguous().view(torch.int32)
        return QuantizedTensor(unpack(words, 4, self.inputs), scales, None, 4, is_float=True)

    def gptq(self) -> QuantizedTensor | Tensor:
        """Words along the inputs, everything turned: [in, out]."""
        words = self._get("qweight")
        bits = self._bits_of(words, dim=0, suffix="qweight")
        self._read("qweight", (num_words(self.inputs, bits), self.out), torch.int32)
        scales = self._matrix("scales").float()
        zeros = self._read("qzeros", (len(scales), num_words(self.out, bits)), torch.int32)
        codes = unpack(zeros, bits, self.out)  # [groups, out]
        if self.form.zeros_less_one:
            codes = (codes + 1) & ((1 << bits) - 1)
        tensor = self._tensor(unpack(words.T, bits, self.inputs), scales.T, codes.T, bits)
        return self._in_order(tensor, "g_idx")

    def awq(self) -> QuantizedTensor:
        """Words along the outputs: [in, out], the columns of a word in AWQ's order."""
        width = num_words(self.out, 4)
        words = self._read("qweight", (self.inputs, width), torch.int32)
        codes = in_plain_order(unpack(words, 4, 8 * width))[:, : self.out]
        scales, zeros = self._matrix("scales").float(), None
        if f"{self.name}.qzeros" in self.checkpoint:
            packed = self._read("qzeros", (len(scales), width), torch.int32)
            zeros = in_plain_order(unpack(packed, 4, 8 * width))[:, : self.out].T
        return self._tensor(codes.T, scales.T, zeros, 4)

    def _tensor(
        self, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int
    ) -> QuantizedTensor:
        suffix = "weight_scale" if self.form.method == "compressed-tensors" else "scales"
        if scales.dim() != 2 or len(scales) != self.out or self.inputs % max(1, scales.shape[1]):
            raise self._wrong(
                suffix, f"has scales {list(scales.shape)} for a matrix {[self.out, self.inputs]}"
            )
        if zeros is not None and zeros.shape != scales.shape:
            raise self._wrong(suffix, f"has zero points {list(zeros.shape)} beside other scales")
        if zeros is not None and bool((zeros == 1 << (bits - 1)).all()):
            zeros = None
        kept = None if zeros is None else zeros.contiguous()
        return QuantizedTensor(codes.contiguous(), scales.contiguous(), kept, bits)

    def _scales(self) -> Tensor:
        return self._per_row(self._get("weight_scale")).float()

    def _per_row(self, stored: Tensor) -> Tensor:
        """Give one number for all, or one a row, a place in every row: [out, groups]."""
        if stored.numel() == 1:
            return stored.reshape(1, 1).expand(self.out, 1)
        return stored[:, None] if stored.dim() == 1 else stored

    def _float_scale(self) -> Tensor:
        """FP8's scale, spread so that it can be multiplied with [out, in]."""
        inverse = f"{self.name}.weight_scale_inv" in self.checkpoint
        suffix = "weight_scale_inv" if inverse else "weight_scale"
        scale = self._per_row(self._get(suffix).float())
        rows, columns = self.form.block
        if not rows or scale.shape == (self.out, 1):
            wanted = (self.out, 1)
        else:
            wanted = (-(-self.out // rows), -(-self.inputs // columns))
        if scale.shape != wanted:
            raise self._wrong(suffix, f"has the shape {list(scale.shape)}, not {list(wanted)}")
        if wanted == (self.out, 1):
            return scale
        spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return spread[: self.out, : self.inputs]

    def _in_order(self, tensor: QuantizedTensor, suffix: str) -> QuantizedTensor | Tensor:
        """Return the layer as it is if its groups are of neighbouring inputs, else as bf16."""
        if f"{self.name}.{suffix}" not in self.checkpoint:
            return tensor
        group_of = self._read(suffix, (self.inputs,)).long()
        num_groups = tensor.scales.shape[1]
        if torch.equal(group_of, torch.arange(self.inputs) // tensor.group_size):
            return tensor
        if int(group_of.min()) < 0 or int(group_of.max()) >= num_groups:
            raise self._wrong(suffix, f"names groups beyond the {num_groups} that have scales")
        zeros = None if tensor.zeros is None else tensor.zeros[:, group_of]
        numbers = from_codes(tensor.codes, zeros, bits=tensor.bits, is_float=False)
        return (numbers * tensor.scales[:, group_of]).bfloat16()

    def _bits_of(self, words: Tensor, *, dim: int, suffix: str) -> int:
        if words.dim() == 2:
            for bits in (4, 8):
                if words.shape[dim] == num_words(self.inputs, bits):
                    return bits
        raise self._wrong(
            suffix,
            f"has the shape {list(words.shape)}; no width of 4 or 8 bits for {self.inputs} inputs",
        )

    def _matrix(self, suffix: str) -> Tensor:
        tensor = self._get(suffix)
        if tensor.dim() != 2 or not tensor.numel():
            raise self._wrong(suffix, f"has the shape {list(tensor.shape)}; it must be a matrix")
        return tensor

    def _read(
        self, suffix: str, shape: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> Tensor:
        tensor = self._get(suffix)
        if tuple(tensor.shape) != shape:
            raise self._wrong(suffix, f"has the shape {list(tensor.shape)}, not {list(shape)}")
        if dtype is not None and tensor.dtype != dtype:
            raise self._wrong(suffix, f"has the dtype {tensor.dtype}, not {dtype}")
        return tensor

    def _get(self, suffix: str) -> Tensor:
        if f"{self.name}.{suffix}" not in self.checkpoint:
            raise ModelLoadError(
                f"there is no tensor {self.name}.{suffix}, which {self.form.source} promises; "
                "download the model again"
            )
        return self.checkpoint.read_any(f"{self.name}.{suffix}")

    def _wrong(self, suffix: str, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self.name}.{suffix} {what} ({self.form.source})")


def _raised(signed: Tensor, bits: int) -> Tensor:
    """Return signed numbers as codes: moved up by half the range."""
    return (signed.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
