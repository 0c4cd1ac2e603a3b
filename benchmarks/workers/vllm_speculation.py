"""vLLM on CPU, bf16, its own engine driven step by step: plain, or with one of its speculators.

Option "speculative_config" is vLLM's own, null for plain decoding. Prefix caching is off, as it is
for every contender.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

from benchmarks.workers.closed_loop import Call, Progress, closed_loop
from benchmarks.workers.protocol import serve

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class VllmContender:
    """Wraps `vllm.LLM`."""

    OPERATIONS = ("complete",)

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import vllm
        from vllm.sampling_params import RequestOutputKind

        self._new_params, self._final = vllm.SamplingParams, RequestOutputKind.FINAL_ONLY
        llm = vllm.LLM(
            model,
            dtype=options["dtype"],
            max_model_len=2048,
            max_num_seqs=32,
            enable_prefix_caching=False,
            enforce_eager=bool(options.get("enforce_eager")),
            speculative_config=options.get("speculative_config"),
            disable_log_stats=False,  # its counters of drafted and accepted tokens
        )
        self._llm, self._engine, self._ids = llm, llm.llm_engine, itertools.count()
        return {"version": vllm.__version__, "torch": torch.__version__}

    def complete(
        self,
        calls: list[Call],
        concurrency: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> dict[str, Any]:
        indexes: dict[str, int] = {}

        def add(index: int, call: Call) -> None:
            params = self._new_params(
                temperature=temperature,
                max_tokens=call["max_tokens"],
                ignore_eos=ignore_eos,
                seed=seed + index if temperature else None,
                detokenize=False,
                output_kind=self._final,
            )
            name = str(next(self._ids))
            indexes[name] = index
            self._engine.add_request(name, {"prompt_token_ids": call["prompt"]}, params)

        def step() -> Iterator[Progress]:
            for output in self._engine.step():
                if output.finished:
                    yield indexes[output.request_id], list(output.outputs[0].token_ids), True

        before = self._counters()
        outputs = closed_loop(calls, concurrency, add, step)
        after = self._counters()
        return {"outputs": outputs, "stats": {k: after[k] - before.get(k, 0) for k in after}}

    def _counters(self) -> dict[str, float]:
        wanted = {
            "vllm:spec_decode_num_draft_tokens": "num_proposed",
            "vllm:spec_decode_num_accepted_tokens": "num_accepted",
        }
        found = self._llm.get_metrics()
        return {wanted[m.name]: m.value for m in found if m.name in wanted}


if __name__ == "__main__":
    serve(VllmContender)
