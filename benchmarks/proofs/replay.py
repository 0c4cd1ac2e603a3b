"""How much of a text the engine's own head would have drafted: the head's half of serving.

The text is what the target wrote greedily; the target's states are computed over it once. Then the
head drafts chains along it as in serving: what agrees with the text is accepted, and the next draft
begins behind the token after it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.loader import Checkpoint
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.head import HeadDrafter
from quickmatch.engine.speculation.head_folder import read_head
from quickmatch.engine.speculation.kept_rows import DraftRequest, KeptRows


@dataclass(slots=True)
class Counts:
    """Draft tokens, as vLLM counts them."""

    num_proposed: int = 0
    num_accepted: int = 0


class Replay:
    """A target and its head, both in float32."""

    def __init__(self, target: Path, head: Path) -> None:
        self._runner = runner = ModelRunner(
            EngineConfig(model=str(target), dtype="float32", num_threads=1, device="cpu")
        )
        config, tensors = read_head(head)
        model = runner.model_config
        weights = Checkpoint(target, dtype=torch.float32, device=runner.device)
        self._head = HeadDrafter(
            config,
            tensors,
            embedding=weights.matrix(
                "model.embed_tokens.weight", model.vocab_size, model.hidden_size
            ),
            model=model,
            num_blocks=runner.num_blocks,
            block_size=runner.block_size,
            max_model_len=runner.max_model_len,
            dtype=torch.float32,
            device=runner.device,
            min_path=0.0,  # vLLM drafts on, however unsure
        )

    def count(self, prompt: list[int], output: list[int], max_tokens: int, depth: int) -> Counts:
        """Draft `depth` tokens a step until max_tokens are out; output has at least depth more."""
        text, counts = prompt + output, Counts()
        features = self._features(text)
        blocks = list(range(-(-len(text) // self._runner.block_size)))
        seen, end = 0, len(prompt) + 1  # the first token comes with the prompt
        while end < len(prompt) + max_tokens:
            rows = list(range(seen, end - 1))
            self._head.observe([KeptRows(0, seen, rows, text[seen + 1 : end], blocks)], [features])
            seen = end - 1
            request = DraftRequest(0, text[:end], blocks)
            tree = self._head.draft([request], depth=depth, width=1, max_nodes=depth)[0]
            accepted = 0
            while accepted < len(tree) and tree.token_ids[accepted] == text[end + accepted]:
                accepted += 1
            counts.num_proposed += len(tree)
            counts.num_accepted += accepted
            end += accepted + 1
        self._head.forget(0)
        return counts

    def _features(self, text: list[int]) -> torch.Tensor:
        rows = list(range(len(text)))
        blocks = list(range(-(-len(text) // self._runner.block_size)))
        span = Span(0, len(text), 0, blocks, -1, None)
        batch = StepBatch(text, rows, rows, [span])
        return self._runner.features(batch, self._head.aux_layers, [0])[0]
