"""transformers' continuous batching (`generate_batch`): paged cache, SDPA attention, CUDA graphs.

Options: "device", "dtype", and the largest workload that will come, since the manager that stays is
sized by the first that it sees: "num_seqs", "prompt_len", "new_tokens". "cache": what its
ContinuousBatchingConfig is told of memory; by itself it takes nearly all that is free.
"""

import os
from typing import Any

from benchmarks.workers.protocol import serve

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class TransformersBatchingContender:
    """Wraps `model.generate_batch` with a manager that stays from call to call."""

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import transformers

        self._cache = transformers.ContinuousBatchingConfig(**options["cache"])
        dtype = getattr(torch, options.get("dtype", "bfloat16"))
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation="sdpa"
        )
        self._model = loaded.to(options.get("device", "cuda")).eval()
        prompt = [3 + i % 100 for i in range(options["prompt_len"])]
        self.generate([prompt] * options["num_seqs"], options["new_tokens"])
        return {"version": transformers.__version__, "torch": torch.__version__}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        from transformers import GenerationConfig

        # Ends at no token: every contender makes exactly as many as are asked for.
        wanted = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=-1)
        found = self._model.generate_batch(
            prompts,
            generation_config=wanted,
            continuous_batching_config=self._cache,
            max_new_tokens=max_tokens,
            persistent_manager=True,
        )
        tokens = [list(one.generated_tokens) for one in found.values()]
        if [len(one) for one in tokens] != [max_tokens] * len(prompts):
            raise RuntimeError("generate_batch gave another number of tokens than was asked for")
        return tokens


if __name__ == "__main__":
    serve(TransformersBatchingContender)
