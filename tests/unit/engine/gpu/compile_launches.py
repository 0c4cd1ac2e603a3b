"""Compiles for a GPU what the engine would launch there, on a machine that has none.

    python -m tests.unit.engine.gpu.compile_launches 90 llama-1b        # a JSON line a kernel
    python -m tests.unit.engine.gpu.compile_launches 90 llama-1b quick  # the least that is telling

Launches are made as usual, on CPU tensors, but go to Triton's compiler in place of a card: the
arguments' types, the shapes of tiles and the options are those that a card would get. It has to run
in a process of its own, where triton was imported to compile, not to interpret.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.gpu.attention import TritonAttention
from quickmatch.engine.gpu.decoder import TritonDecoder
from quickmatch.engine.gpu.kernels import layer
from quickmatch.engine.gpu.linear import QuantizedLinear
from quickmatch.engine.gpu.lora import TritonAdapterSteps
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.lora import GATE_UP, LowRank
from quickmatch.engine.packing import IntPacker
from quickmatch.engine.quantization.formats import FORMATS, FP8, INT4_ASYMMETRIC, quantize
from quickmatch.engine.speculation.tree import DraftTree
from tests.unit.engine.test_attention import config_of

CPU = torch.device("cpu")
# Query heads, key heads, head dimension.
SHAPES = {"llama-1b": (32, 8, 64), "llama-8b": (32, 8, 128), "odd": (9, 3, 96), "wide": (8, 4, 256)}
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Compiler:
    """Takes launches and compiles each distinct one."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self._seen: set[str] = set()

    def run(self, kernel: Any, *args: Any, **given: Any) -> None:
        """Stand in for JITFunction.run."""
        given = {name: value for name, value in given.items() if name not in ("grid", "warmup")}
        bound = dict(zip(kernel.arg_names, args, strict=False))
        bound |= {name: value for name, value in given.items() if name in kernel.arg_names}
        options = {name: value for name, value in given.items() if name not in kernel.arg_names}
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = bound[parameter.name]
            signature[parameter.name] = kind = _type_of(value, parameter)
            if kind == "constexpr":
                constants[parameter.name] = value
            elif _is_aligned(value, parameter):
                attributes[(index,)] = [["tt.divisibility", 16]]
        key = f"{kernel.__name__} {signature} {constants} {sorted(attributes)} {options}"
        if key in self._seen:
            return
        self._seen.add(key)
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self._target, options=options)
        told = {"kernel": kernel.__name__, "shared_bytes": compiled.metadata.shared}
        print(json.dumps(told), flush=True)


def _type_of(value: Any, parameter: Any) -> str:
    if parameter.is_constexpr:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "constexpr" if value == 1 and not parameter.do_not_specialize else "i32"


def _is_aligned(value: Any, parameter: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not parameter.do_not_specialize_on_alignment
    return isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize


def launch_attention(shape: tuple[int, int, int], *, is_quick: bool) -> None:
    """Launch decodes of one and of many sequences, a draft, and chunks, with and without window."""
    windows = (None,) if is_quick else (None, 30)
    num_heads, num_kv_heads, head_dim = shape
    attention = TritonAttention(*shape, 16, num_processors=132)
    cache = KVCache(config_of(*shape), 64, 16, dtype=torch.bfloat16, device=CPU)
    tree = DraftTree(parents=[-1] * 7)
    for spans in ([(1, None)], [(1, None)] * 40, [(8, tree), (100, None)]):
        batch = StepBatch([], [], [], [])
        for length, own in spans:
            start = len(batch.token_ids)
            batch.spans.append(Span(start, length, 20, list(range(8)), -1, None, own))
            batch.token_ids += [0] * length
        for window in windows:
            packer = IntPacker()
            plan = attention.plan(batch, window, packer)
            packer.run(CPU)
            lines = num_heads + 2 * num_kv_heads
            heads = torch.empty(len(batch.token_ids), lines, head_dim, dtype=torch.bfloat16)
            attention.run(plan, 0, heads, cache)


def launch_products(capability: int, *, is_quick: bool) -> None:
    """Launch every format on few, some and many rows; or those that differ most on few."""
    weight = torch.randn(64, 256)
    forms = [INT4_ASYMMETRIC] if is_quick else [*FORMATS.values()]
    for form in [*forms, FP8] if capability >= 89 else forms:
        linear = QuantizedLinear(quantize(weight, form))
        for num_rows in (1,) if is_quick else (1, 33, 100):
            linear(torch.empty(num_rows, 256, dtype=torch.bfloat16))


def launch_the_rest(shape: tuple[int, int, int], *, is_quick: bool) -> None:
    """Launch adapters on few and on many rows, and what lies between the products."""
    num_heads, num_kv_heads, head_dim = shape
    adapters = TritonAdapterSteps(1, dtype=torch.bfloat16, device=CPU)
    a, b = torch.empty(96, 256, dtype=torch.bfloat16), torch.empty(512, 96, dtype=torch.bfloat16)
    adapters.put(0, [[LowRank(a, b)] * 4])
    lines = num_heads + 2 * num_kv_heads
    for num_rows in (1,) if is_quick else (1, 100):
        step = adapters.step([Span(0, num_rows, 0, [], 0, None)], num_rows)
        assert step is not None
        y, x = (torch.empty(num_rows, n, dtype=torch.bfloat16) for n in (512, 256))
        step.add(y, x, 0, GATE_UP)
        heads = torch.empty(num_rows, lines, head_dim, dtype=torch.bfloat16)
        place(heads, shape)


def place(heads: torch.Tensor, shape: tuple[int, int, int]) -> None:
    """Launch the placing of heads, with norms, and the activation, as the decoder does."""
    num_heads, num_kv_heads, head_dim = shape
    cache = KVCache(config_of(*shape), 64, 16, dtype=torch.bfloat16, device=CPU)
    decoder = TritonDecoder(config_of(*shape), None, None, cache, None)  # type: ignore[arg-type]
    num_rows = len(heads)
    norms = torch.empty(num_heads + num_kv_heads, head_dim, dtype=torch.bfloat16)
    angles = torch.empty(num_rows, 1, 2 * head_dim, dtype=torch.bfloat16)
    inputs = SimpleNamespace(slots=torch.zeros(num_rows, dtype=torch.int64))
    for qk_norm in (None, norms):
        held = SimpleNamespace(qk_norm=qk_norm)
        cos, sin = angles[..., :head_dim], angles[..., head_dim:]
        decoder._place(0, held, heads, cos, sin, inputs)  # type: ignore[arg-type]
    decoder._activate(torch.empty(num_rows, 2 * 512, dtype=torch.bfloat16))


def main() -> int:
    """Compile the launches of a shape for a capability, as 90 for 9.0; a failure ends it."""
    capability, name = int(sys.argv[1]), sys.argv[2]
    assert isinstance(layer.activate, JITFunction), "triton interprets; unset TRITON_INTERPRET"
    compiler = Compiler(capability)
    JITFunction.run = lambda kernel, *args, **given: compiler.run(kernel, *args, **given)
    is_quick = "quick" in sys.argv
    launch_attention(SHAPES[name], is_quick=is_quick)
    launch_the_rest(SHAPES[name], is_quick=is_quick)
    launch_products(capability, is_quick=is_quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
