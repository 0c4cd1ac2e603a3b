"""transformers' `generate` in option "dtype", with its own dynamic cache and SDPA attention."""

import os
from typing import Any

from benchmarks.workers.protocol import serve

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class TransformersContender:
    """Wraps `AutoModelForCausalLM.generate`. Prompts of one call have one length: no padding."""

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import transformers

        dtype = getattr(torch, options["dtype"])
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        return {"version": transformers.__version__, "torch": torch.__version__}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        import torch

        inputs = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
            )
        new: list[list[int]] = output[:, inputs.shape[1] :].tolist()
        return new


if __name__ == "__main__":
    serve(TransformersContender)
