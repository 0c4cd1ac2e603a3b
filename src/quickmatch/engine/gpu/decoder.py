"""The decoder with what lies between its products in Triton's kernels (kernels/layer.py)."""

from torch import Tensor

from quickmatch.engine.decoder import Decoder, StepInputs
from quickmatch.engine.gpu.kernels import layer as kernels
from quickmatch.engine.weights import LayerWeights

_BLOCK = 1024  # numbers that a program activates
_FEW_ROWS = 32
_TILE = 16  # rows that a program places, where there are more


class TritonDecoder(Decoder):
    """decoder.py's, with two of its parts replaced."""

    def _place(
        self,
        index: int,
        layer: LayerWeights,
        heads: Tensor,
        cos: Tensor,
        sin: Tensor,
        inputs: StepInputs,
    ) -> None:
        config = self._config
        keys, values = self._cache.keys_and_values(index)
        num_rows = heads.shape[0]
        tile = 1 if num_rows <= _FEW_ROWS else _TILE  # one, so that few rows have many programs
        kernels.place_heads[-(-num_rows // tile), heads.shape[1]](
            heads, keys, values, inputs.slots, cos, sin,
            heads if layer.qk_norm is None else layer.qk_norm,
            num_rows, config.rms_norm_eps, heads.stride(0), keys.stride(0), cos.stride(0),
            NUM_HEADS=config.num_heads, NUM_KV_HEADS=config.num_kv_heads,
            HEAD_DIM=config.head_dim, HAS_NORMS=layer.qk_norm is not None,
            BLOCK_M=tile, BLOCK_D=max(16, 1 << (config.head_dim - 1).bit_length()),
            num_warps=1 if tile == 1 else 4, enable_fp_fusion=True,
        )  # fmt: skip

    def _activate(self, gate_up: Tensor) -> Tensor:
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, size)
        kernels.activate[rows, -(-size // _BLOCK)](
            gate_up, out, size, BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=True
        )
        return out
