"""Our engine, in this process: `Engine` over `ModelRunner`, driven step by step, no sockets.

Options: "dtype", "num_threads", "max_num_batched_tokens" as in EngineConfig. Prefix caching is
off, as it is for every contender.
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

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch

        config = EngineConfig(
            model=model,
            max_model_len=2048,
            max_num_seqs=32,
            kv_memory_bytes=2 << 30,
            enable_prefix_caching=False,
            # Plain decoding, as the peers': a random model's text goes in circles, which are the
            # easiest drafts there are.
            speculation=SpeculationConfig(drafters=()),
            **options,
        )
        runner = ModelRunner(config)
        runner.warm_up()
        self._engine = Engine(runner, config)
        self._ids = itertools.count()
        return {
            "dtype": str(runner.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "num_threads": torch.get_num_threads(),
        }

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        token_ids: dict[str, list[int]] = {}
        for prompt in prompts:
            request = Generate(
                request_id=str(next(self._ids)), prompt_token_ids=prompt, sampling=params
            )
            refused = self._engine.add(request)
            if refused is not None:
                raise RuntimeError(refused.error)
            token_ids[request.request_id] = []
        while self._engine.has_work:
            for event in self._engine.step():
                token_ids[event.request_id].extend(event.token_ids)
        return list(token_ids.values())


if __name__ == "__main__":
    serve(QuickmatchContender)
