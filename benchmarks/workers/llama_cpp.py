"""llama.cpp through its server, as `xllamacpp` ships it, with prompts as token ids.

Options: "format" of the weights ("BF16", which it is by default, "Q8_0" or "Q4_0"); "max_len", what
one slot must hold; "num_threads", by default as it chooses; "speculation", one of llama.cpp's
types without their prefix ("NGRAM_MOD", "DRAFT_SIMPLE", ...), and for the latter "draft" (a model
folder). Calls go over HTTP to a server in this process, with as many of them open as
`concurrency` says.
"""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.workers.closed_loop import Call, Output
from benchmarks.workers.gguf_file import Dtype, gguf_file
from benchmarks.workers.protocol import serve

_SLOTS = 8
_CONTEXT = 2048


class LlamaCppContender:
    """Wraps `xllamacpp.Server`."""

    OPERATIONS = ("complete",)

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import xllamacpp

        params = xllamacpp.CommonParams()
        dtype = options.get("format", "BF16")
        params.model.path = _file(model, dtype)
        params.n_parallel, params.n_ctx = _SLOTS, _SLOTS * _CONTEXT
        if options.get("max_len", _CONTEXT) > _CONTEXT:
            params.kv_unified = True  # the slots share the context, so that one may have most of it
            params.n_ctx = max(params.n_ctx, options["max_len"])
        if "num_threads" in options:
            params.cpuparams.n_threads = options["num_threads"]
            params.cpuparams_batch.n_threads = options["num_threads"]
        if "speculation" in options:
            kinds = xllamacpp.common_speculative_type
            kind = getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{options['speculation']}")
            params.speculative.types = [kind]
        if "draft" in options:
            params.speculative.draft.mparams.path = _file(options["draft"], "BF16")
        self._server = xllamacpp.Server(params)
        return {"version": xllamacpp.__version__, "weights": dtype}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        calls = [{"prompt": prompt, "max_tokens": max_tokens} for prompt in prompts]
        found = self.complete(calls, len(calls), ignore_eos=True)
        return [output["token_ids"] for output in found["outputs"]]

    def complete(
        self,
        calls: list[Call],
        concurrency: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> dict[str, Any]:
        if concurrency > _SLOTS:
            raise NotImplementedError(f"started with {_SLOTS} slots")
        settings = {"temperature": temperature, "ignore_eos": ignore_eos, "seed": seed}
        stats = {"num_proposed": 0, "num_accepted": 0}

        def answer(call: Call) -> Output:
            start = time.perf_counter()
            reply = self._post(call, settings)
            stats["num_proposed"] += reply["timings"].get("draft_n", 0)
            stats["num_accepted"] += reply["timings"].get("draft_n_accepted", 0)
            return {"token_ids": reply["tokens"], "seconds": time.perf_counter() - start}

        with ThreadPoolExecutor(concurrency) as pool:
            outputs = list(pool.map(answer, calls))
        return {"outputs": outputs, "stats": stats}

    def _post(self, call: Call, settings: dict[str, Any]) -> dict[str, Any]:
        body = settings | {
            "prompt": call["prompt"],
            "n_predict": call["max_tokens"],
            "return_tokens": True,
            "cache_prompt": False,  # prefix caching is off, as it is for every contender
        }
        request = urllib.request.Request(
            f"{self._server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            reply: dict[str, Any] = json.load(response)
        return reply


def _file(folder: str, dtype: Dtype) -> str:
    name = "model.gguf" if dtype == "BF16" else f"model-{dtype.lower()}.gguf"
    return str(gguf_file(Path(folder), Path(folder) / "llama.cpp" / name, dtype))


if __name__ == "__main__":
    serve(LlamaCppContender)
