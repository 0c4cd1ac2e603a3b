"""The pass of Triton's kernels on whole models: against transformers, peft and its own eager steps.

Interpreted on a CPU, in float32; compiled where `-m gpu` asks for it.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from quickmatch.engine.batch import StepBatch
from quickmatch.engine.forward_pass import ForwardPass, PassSize
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.parity.conftest import MadeModel, make_runner
from tests.parity.driver import DrivenSequence, Driver
from tests.parity.test_lora import make_adapter
from tests.parity.test_transformers import greedy_of, prompt_of

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    # peft 0.21 asks transformers for a property that transformers 5 calls deprecated.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

Made = Callable[[str], MadeModel]
NUM_TOKENS = 4
MAX_NUM_SEQS = 6


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the models run."""
    return torch.device(request.param)


def triton_runner(folder: Path, device: torch.device) -> ModelRunner:
    """Return a runner whose pass is Triton's; on a CPU it has to be put there."""
    from quickmatch.engine.gpu.triton_pass import TritonPass

    runner = make_runner(folder, device=device.type, max_num_seqs=MAX_NUM_SEQS)
    if device.type == "cpu":
        size = PassSize(
            num_blocks=runner.num_blocks,
            block_size=runner.block_size,
            max_model_len=runner.max_model_len,
            max_num_seqs=MAX_NUM_SEQS,
        )
        with torch.inference_mode():
            runner._pass = TritonPass(
                folder, runner.model_config, size, dtype=torch.float32, device=device
            )
    assert isinstance(runner._pass, TritonPass)
    return runner


@pytest.mark.parametrize("kind", ["mistral-window", "qwen3"])
def test_greedy_text(kind: str, made: Made, device: torch.device) -> None:
    """Prompts whole and in chunks, decodes alone and batched, which are replayed."""
    model, folder = made(kind)
    driver = Driver(triton_runner(folder, device))
    prompts = [prompt_of(length) for length in (3, 37, 18)]
    right = [greedy_of(model, prompt)[:NUM_TOKENS] for prompt in prompts]
    alone = driver.start(prompts[1], max_len=37 + NUM_TOKENS)
    assert driver.generate([alone], NUM_TOKENS) == right[1:2]
    chunked = [driver.start(p, max_len=len(p) + NUM_TOKENS) for p in prompts]
    assert driver.generate(chunked, NUM_TOKENS, chunk=12) == right


def test_a_replayed_step_is_the_eager_one(made: Made, device: torch.device) -> None:
    """Padded to 4 and to 6 rows, with sequences that grow between two replays.

    Steps were made beforehand, which wrote to no sequence's block.
    """
    _, folder = made("mistral-window")
    runner = triton_runner(folder, device)
    with torch.inference_mode():
        runner._pass.prepare()  # type: ignore[attr-defined]
        stored = [layer[:, : runner.num_blocks * runner.block_size] for layer in layers_of(runner)]
        assert not any(bool(layer.any()) for layer in stored)
    driver = Driver(runner)
    sequences = [driver.start(prompt_of(length), max_len=60) for length in (3, 12, 30, 8, 10)]
    driver.step(sequences)
    for chosen in (sequences[:3], sequences, sequences[1:4]):
        batch = driver.batch(chosen)
        assert runner._pass._decodes.kind_of(batch) is not None  # type: ignore[attr-defined]
        replayed = runner.logits(batch)
        eager = _eagerly(runner._pass, lambda batch=batch: runner.logits(batch))
        assert replayed is not None
        assert eager is not None
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-4)
        driver.step(chosen)


def layers_of(runner: ModelRunner) -> list[torch.Tensor]:
    """Return each layer's keys and values, [lines, slots, head_dim]."""
    layers: list[torch.Tensor] = runner._pass._cache._layers  # type: ignore[attr-defined]
    return layers


def _eagerly(forward: ForwardPass, run: Callable[[], torch.Tensor | None]) -> torch.Tensor | None:
    """Run with no step taken to be replayed."""
    steps = forward._decodes  # type: ignore[attr-defined]
    forward._decodes = _Refusing()  # type: ignore[attr-defined]
    try:
        return run()
    finally:
        forward._decodes = steps  # type: ignore[attr-defined]


class _Refusing:
    def kind_of(self, *_: object) -> None:
        return None


def test_a_replayed_draft_is_the_eager_one(
    made: Made, tmp_path: Path, device: torch.device
) -> None:
    """Trees of several sizes, single tokens and adapters beside them; hidden states are asked for.

    Twice with the same padding, so that the second finds the first one's memory.
    """
    _, folder = made("mistral-window")
    make_adapter("mistral-window", tmp_path / "a", seed=1)
    runner = triton_runner(folder, device)
    runner.put_adapter("a@1", runner.read_adapter(str(tmp_path / "a")))
    driver = Driver(runner)
    sequences = [
        driver.start(prompt_of(length), max_len=48, adapter=adapter)
        for length, adapter in ((3, None), (12, "a@1"), (17, None))
    ]
    driver.step(sequences)
    kinds = set()
    for parents in (([-1, 0, 0, 2], [], [-1, -1, 1]), ([-1], [-1, 0, 1, -1], [])):
        batch = with_drafts(driver.batch(sequences), parents, runner.block_size, sequences)
        rows = list(range(len(batch.token_ids)))[1:]
        kinds.add(runner._pass._decodes.kind_of(batch, (1, 2)))  # type: ignore[attr-defined]
        with torch.inference_mode():
            replayed = runner._pass.run(batch, rows, (1, 2))
            steps = runner._pass._decodes  # type: ignore[attr-defined]
            runner._pass._decodes = _Refusing()  # type: ignore[attr-defined]
            eager = runner._pass.run(batch, rows, (1, 2))
            runner._pass._decodes = steps  # type: ignore[attr-defined]
        torch.testing.assert_close(replayed.logits, eager.logits, rtol=1e-4, atol=1e-4)
        assert len(replayed.aux) == 2
        torch.testing.assert_close(replayed.aux, eager.aux, rtol=1e-4, atol=1e-4)
    (kind,) = kinds
    assert (kind.size, kind.rows, kind.has_adapters) == (4, 8, True)


def with_drafts(
    batch: StepBatch,
    parents_of: tuple[list[int], ...],
    block_size: int,
    sequences: list[DrivenSequence],
) -> StepBatch:
    """Put a tree of made-up tokens behind each span's last token."""
    out = StepBatch([], [], [], [])
    for span, parents, sequence in zip(batch.spans, parents_of, sequences, strict=True):
        tree = DraftTree()
        for node, parent in enumerate(parents):
            tree.add(5 + node, parent, 0.5, Source.HEAD)
        depths, first = [0, *tree.depths()], span.context_len
        table = sequence.blocks[: -(-(first + len(depths)) // block_size)]
        start = len(out.token_ids)
        draft = tree if parents else None
        out.spans.append(
            replace(span, start=start, num_tokens=len(depths), block_table=table, tree=draft)
        )
        out.token_ids += [batch.token_ids[span.start], *tree.token_ids]
        out.positions += [first + depth for depth in depths]
        places = range(first, first + len(depths))
        out.slots += [table[i // block_size] * block_size + i % block_size for i in places]
    return out


def test_base_and_adapters_in_one_batch(made: Made, tmp_path: Path, device: torch.device) -> None:
    """Chunks and decodes of the base and of two ranks; one more is loaded on the way."""
    base, folder = made("qwen2")
    merged = {
        None: base,
        "a@1": make_adapter("qwen2", tmp_path / "a", seed=1),
        "b@1": make_adapter(
            "qwen2", tmp_path / "b", seed=2, r=7, target_modules=["q_proj", "v_proj", "down_proj"]
        ),
        "c@1": make_adapter("qwen2", tmp_path / "c", seed=3, r=20),
    }
    runner = triton_runner(folder, device)
    for name in ("a@1", "b@1"):
        runner.put_adapter(name, runner.read_adapter(str(tmp_path / name[0])))
    driver = Driver(runner)
    cases = [(None, 9), ("a@1", 20), ("b@1", 5), ("a@1", 3)]
    sequences = [
        driver.start(prompt_of(length), max_len=length + NUM_TOKENS, adapter=adapter)
        for adapter, length in cases
    ]
    driver.generate(sequences, 2, chunk=10)
    runner.put_adapter("c@1", runner.read_adapter(str(tmp_path / "c")))
    sequences.append(driver.start(prompt_of(6), max_len=30, adapter="c@1"))
    got = driver.generate(sequences, 4)
    right = [greedy_of(merged[name], prompt_of(n)) for name, n in [*cases, ("c@1", 6)]]
    assert got == [tokens[:4] for tokens in right]
