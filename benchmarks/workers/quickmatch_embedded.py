"""Our engine, in this process: `Engine` over `ModelRunner`, driven step by step, no sockets.

Options: those of EngineConfig ("dtype", "quantization", "num_threads", "max_adapters", ...). Prefix
caching is off, as it is for every contender. Beside "generate", on the engine itself:

    {"op": "time_steps", "rows": [1, 8], "repetitions": 10}    -> "step_s": a list each
    {"op": "load_adapter", "adapter": "a@1", "path": "/path"}, {"op": "unload_adapter", ...}
    {"op": "extend", "prompts": [...], "max_tokens": 16, "adapters": ["a@1", null, ...]}
"""

import itertools
from typing import Any

from benchmarks.workers.protocol import serve
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.wire import Generate


class QuickmatchContender:
    """Wraps `Engine`."""

    OPERATIONS = ("time_steps", "load_adapter", "unload_adapter", "extend")

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch

        usual = {"max_model_len": 2048, "max_num_seqs": 32, "kv_memory_bytes": 2 << 30}
        config = EngineConfig(
            model=model,
            enable_prefix_caching=False,
            # Plain decoding, as the peers': a random model's text goes in circles, which are the
            # easiest drafts there are.
            speculation=SpeculationConfig(drafters=()),
            **usual | options,
        )
        self._runner = ModelRunner(config)
        self._runner.warm_up()
        self._engine = Engine(self._runner, config)
        self._ids = itertools.count()
        return {
            "dtype": str(self._runner.dtype).removeprefix("torch."),
            "quantization": options.get("quantization", "none"),
            "torch": torch.__version__,
            "num_threads": torch.get_num_threads(),
            "weight_bytes": self._runner.model_bytes,
            "read_bytes": _bytes_a_step(self._runner),
        }

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        return self._extend(prompts, max_tokens, [None] * len(prompts))

    def extend(
        self, prompts: list[list[int]], max_tokens: int, adapters: list[str | None]
    ) -> dict[str, Any]:
        """Do as `generate` does, each prompt with an adapter or without."""
        return {"token_ids": self._extend(prompts, max_tokens, adapters)}

    def load_adapter(self, adapter: str, path: str) -> dict[str, Any]:
        """Load a PEFT folder under a name."""
        self._engine.load_adapter(adapter, path)
        return {}

    def unload_adapter(self, adapter: str) -> dict[str, Any]:
        """Forget it."""
        self._engine.unload_adapter(adapter)
        return {}

    def time_steps(self, rows: list[int], repetitions: int) -> dict[str, Any]:
        """Time steps of one sequence with so many rows each, in turns; the first do not count."""
        taken: list[list[float]] = [[] for _ in rows]
        for _ in range(1 + repetitions):
            for times, num_rows in zip(taken, rows, strict=True):
                times.append(self._runner.time_step(1, num_rows))
        return {"step_s": [times[1:] for times in taken]}

    def _extend(
        self, prompts: list[list[int]], max_tokens: int, adapters: list[str | None]
    ) -> list[list[int]]:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        token_ids: dict[str, list[int]] = {}
        for prompt, adapter in zip(prompts, adapters, strict=True):
            request = Generate(
                request_id=str(next(self._ids)),
                prompt_token_ids=prompt,
                sampling=params,
                adapter=adapter,
            )
            refused = self._engine.add(request)
            if refused is not None:
                raise RuntimeError(refused.error)
            token_ids[request.request_id] = []
        while self._engine.has_work:
            for event in self._engine.step():
                if event.error:
                    raise RuntimeError(event.error)
                token_ids[event.request_id].extend(event.token_ids)
        return list(token_ids.values())


def _bytes_a_step(runner: ModelRunner) -> int:
    """Return the weights that every step reads: all but an embedding that is only looked up in.

    Every pass keeps its own copy of what it multiplies by, a tied embedding's among them.
    """
    decoder = getattr(runner._pass, "decoder", None)
    if decoder is not None:
        return int(decoder.num_bytes)
    embedding = runner._pass.embedding
    return runner.model_bytes - embedding.numel() * embedding.element_size()


if __name__ == "__main__":
    serve(QuickmatchContender)
