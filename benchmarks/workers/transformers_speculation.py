"""transformers' `generate`, bf16: plain, with prompt lookup, or assisted by a draft model.

Options: "prompt_lookup_num_tokens", or "assistant" (a model folder). With either it takes one
sequence at a time; plain decoding takes several, padded on the left, as waves.
"""

import os
from typing import Any

from benchmarks.workers.closed_loop import Call, Output, one_by_one
from benchmarks.workers.protocol import serve

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class TransformersContender:
    """Wraps `AutoModelForCausalLM.generate`."""

    OPERATIONS = ("complete",)

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import torch
        import transformers

        dtype = getattr(torch, options["dtype"])
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(model, dtype=dtype).eval()
        self._extra: dict[str, Any] = {}
        if "prompt_lookup_num_tokens" in options:
            self._extra["prompt_lookup_num_tokens"] = options["prompt_lookup_num_tokens"]
        if "assistant" in options:
            self._extra["assistant_model"] = load(options["assistant"], dtype=dtype).eval()
        return {"version": transformers.__version__, "torch": torch.__version__}

    def complete(
        self,
        calls: list[Call],
        concurrency: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> dict[str, Any]:
        if temperature or seed or ignore_eos:
            raise NotImplementedError("only greedy answers to their natural end")
        if concurrency == 1:
            return {"outputs": one_by_one(calls, lambda call: self._answer([call])[0])}
        if self._extra:
            raise NotImplementedError("transformers speculates for one sequence at a time")
        outputs: list[Output] = []
        for start in range(0, len(calls), concurrency):
            wave = self._answer(calls[start : start + concurrency])
            outputs += [{"token_ids": ids, "seconds": 0.0} for ids in wave]
        return {"outputs": outputs}

    def _answer(self, calls: list[Call]) -> list[list[int]]:
        import torch

        longest = max(len(call["prompt"]) for call in calls)
        pads = [longest - len(call["prompt"]) for call in calls]
        inputs = torch.tensor([[0] * pad + c["prompt"] for pad, c in zip(pads, calls, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        with torch.inference_mode():
            output = self._model.generate(
                inputs,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max(call["max_tokens"] for call in calls),
                **self._extra,
            )
        new: list[list[int]] = output[:, longest:].tolist()
        return [_until_end(ids, call["max_tokens"]) for ids, call in zip(new, calls, strict=True)]


def _until_end(token_ids: list[int], max_tokens: int) -> list[int]:
    """Cut what a wave went on with after this sequence's own end."""
    ends = [i for i, token_id in enumerate(token_ids[:max_tokens]) if token_id in (0, 2)]
    return token_ids[: ends[0] if ends else max_tokens]


if __name__ == "__main__":
    serve(TransformersContender)
