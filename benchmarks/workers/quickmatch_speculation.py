"""Our engine with speculation, in this process, driven step by step, no sockets.

Options: "speculation" holds SpeculationConfig's fields; others as in EngineConfig. Prefix caching
is off, as it is for every contender.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from benchmarks.workers.closed_loop import Call, Progress, closed_loop
from benchmarks.workers.protocol import serve
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.wire import Generate, SpeculationStats

_TENANT = "benchmark"


class SpeculatingContender:
    """Wraps `Engine`."""

    OPERATIONS = ("complete", "load_draft", "stats")

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch

        others = {name: value for name, value in options.items() if name != "speculation"}
        config = EngineConfig(
            model=model,
            max_model_len=2048,
            kv_memory_bytes=1 << 30,
            enable_prefix_caching=False,
            speculation=SpeculationConfig(**options["speculation"]),
            **others,
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

    def complete(
        self,
        calls: list[Call],
        concurrency: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> dict[str, Any]:
        """Answer the calls; beside the outputs, what speculation did meanwhile."""
        indexes: dict[str, int] = {}

        def add(index: int, call: Call) -> None:
            request = Generate(
                request_id=str(next(self._ids)),
                prompt_token_ids=call["prompt"],
                prediction_token_ids=call["prediction"],
                tenant=_TENANT,
                sampling=SamplingParams(
                    temperature=temperature,
                    max_tokens=call["max_tokens"],
                    ignore_eos=ignore_eos,
                    seed=seed + index,
                ),
            )
            refused = self._engine.add(request)
            if refused is not None:
                raise RuntimeError(refused.error)
            indexes[request.request_id] = index

        def step() -> Iterator[Progress]:
            for event in self._engine.step():
                is_end = event.finish_reason is not None
                if event.error:
                    raise RuntimeError(event.error)
                yield indexes[event.request_id], event.token_ids, is_end

        before = self._counters()
        outputs = closed_loop(calls, concurrency, add, step)
        return {"outputs": outputs, "stats": _since(before, self._counters())}

    def load_draft(self, path: str) -> dict[str, Any]:
        """Draft with the head in this folder from the next step on."""
        return {"detail": self._engine.load_draft("benchmark@1", path)}

    def stats(self) -> dict[str, Any]:
        """Return what speculation did since the start."""
        return {"stats": self._counters()}

    def _counters(self) -> dict[str, Any]:
        found = self._engine.stats().speculation or SpeculationStats()
        builtins: dict[str, Any] = msgspec.to_builtins(found)
        return builtins


def _since(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the counters' growth; texts and what is not counted as they are now."""
    out: dict[str, Any] = {}
    for name, value in after.items():
        if isinstance(value, dict):
            out[name] = _since(before.get(name, {}), value)
        elif isinstance(value, int | float):
            out[name] = value - before.get(name, 0)
        else:
            out[name] = value
    return out


if __name__ == "__main__":
    serve(SpeculatingContender)
