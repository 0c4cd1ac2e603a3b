"""vLLM on CPU, through its offline `LLM` class, as its users run it.

Options: "dtype"; "enforce_eager" chooses between its quick start and its compiled graph; "max_len"
is the longest sequence. Prefix caching is off, as it is for every contender: each repetition brings
prompts that were never seen.
"""

import os
from typing import Any

from benchmarks.workers.protocol import serve

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class VllmContender:
    """Wraps `vllm.LLM`."""

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import vllm

        self._new_params = vllm.SamplingParams
        self._llm = vllm.LLM(
            model,
            dtype=options["dtype"],
            max_model_len=options.get("max_len", 2048),
            max_num_seqs=32,
            enable_prefix_caching=False,
            enforce_eager=bool(options["enforce_eager"]),
        )
        return {"version": vllm.__version__, "torch": torch.__version__}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        params = self._new_params(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(VllmContender)
