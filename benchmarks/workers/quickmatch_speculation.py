"""Our engine with speculation, in this process, driven step by step, no sockets.

Options: "speculation" holds SpeculationConfig's fields; others as in EngineConfig. Prefix caching
is off, as it is for every contender.
"""

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from benchmarks.workers.closed_loop import Call, Output, Progress, closed_loop
from benchmarks.workers.protocol import serve
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.wire import Generate, SpeculationStats

_TENANT = "benchmark"
_COUNTED_SECONDS = ("busy_s", "plain_s", "draft_s")


class SpeculatingContender:
    """Wraps `Engine`."""

    OPERATIONS = ("complete", "load_draft", "remember", "stats")

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
        if self._engine.speculator is not None:
            self._engine.speculator.measure_costs(config.max_num_seqs)
        gc.collect()
        gc.freeze()  # as an engine's process does
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
        """Answer the calls; beside the outputs, what speculation did meanwhile.

        One at a time, each output also tells what speculation did for it.
        """
        self._settings = {"temperature": temperature, "ignore_eos": ignore_eos}
        before = self._counters()
        if concurrency > 1:
            outputs = self._run(calls, concurrency, seed)
        else:
            outputs = [self._alone(call, seed + index) for index, call in enumerate(calls)]
        return {"outputs": outputs, "stats": _since(before, self._counters())}

    def _alone(self, call: Call, seed: int) -> Output:
        before = self._counters()
        (output,) = self._run([call], 1, seed)
        return output | {"stats": _since(before, self._counters())}

    def _run(self, calls: list[Call], concurrency: int, seed: int) -> list[Output]:
        indexes: dict[str, int] = {}

        def add(index: int, call: Call) -> None:
            request = Generate(
                request_id=str(next(self._ids)),
                prompt_token_ids=call["prompt"],
                prediction_token_ids=call["prediction"],
                tenant=_TENANT,
                sampling=SamplingParams(
                    max_tokens=call["max_tokens"], seed=seed + index, **self._settings
                ),
            )
            refused = self._engine.add(request)
            if refused is not None:
                raise RuntimeError(refused.error)
            indexes[request.request_id] = index

        def step() -> Iterator[Progress]:
            for event in self._engine.step():
                if event.error:
                    raise RuntimeError(event.error)
                is_end = event.finish_reason is not None
                yield indexes[event.request_id], event.token_ids, is_end

        return closed_loop(calls, concurrency, add, step)

    def remember(self, outputs: list[list[int]]) -> dict[str, Any]:
        """Put past outputs into the suffix index, as a server restores them from its traces."""
        self._engine.remember(_TENANT, None, outputs)
        return {}

    def load_draft(self, path: str) -> dict[str, Any]:
        """Draft with the head in this folder from the next step on."""
        head = self._engine.runner.read_draft(path)
        return self._engine.swap_draft("", f"benchmark@{next(self._ids)}", head)

    def stats(self) -> dict[str, Any]:
        """Return what speculation did since the start."""
        return {"stats": self._counters()}

    def _counters(self) -> dict[str, Any]:
        found = self._engine.stats().speculation or SpeculationStats()
        builtins: dict[str, Any] = msgspec.to_builtins(found)
        return builtins


def _since(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the counters' growth, and what is no counter as it is now."""
    out: dict[str, Any] = {}
    for name, value in after.items():
        if isinstance(value, dict):
            out[name] = _since(before.get(name, {}), value)
        elif name.startswith("num_") or name in _COUNTED_SECONDS:
            out[name] = value - before.get(name, 0)
        else:
            out[name] = value
    return out


if __name__ == "__main__":
    serve(SpeculatingContender)
