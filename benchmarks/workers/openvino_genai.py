"""OpenVINO GenAI on CPU: plain, with prompt lookup, or with a draft model.

Its own format is made from a GGUF file in float16, the nearest to bfloat16 that it reads; it
computes in bfloat16 where the processor can. Options: "weights" ("float16", which they are by
default, or "int8" or "int4", as NNCF compresses them), and "prompt_lookup" (true) or "draft" (a
model folder). "complete" takes calls one at a time, "generate" a batch.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.workers.closed_loop import Call, one_by_one
from benchmarks.workers.gguf_file import gguf_file
from benchmarks.workers.protocol import serve

_NUM_ASSISTANT_TOKENS = 5
_END_IDS = {0, 2}


class OpenvinoContender:
    """Wraps `openvino_genai.LLMPipeline`."""

    OPERATIONS = ("complete",)

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._ov, self._genai = numpy, openvino, openvino_genai
        extra: dict[str, Any] = {}
        if options.get("prompt_lookup"):
            extra["prompt_lookup"] = True
        if "draft" in options:
            extra["draft_model"] = openvino_genai.draft_model(self._folder(options["draft"]), "CPU")
        weights = options.get("weights", "float16")
        self._pipeline = openvino_genai.LLMPipeline(self._folder(model, weights), "CPU", **extra)
        self._is_drafting = bool(extra)
        self._options = options
        return {"version": openvino_genai.__version__, "weights": weights}

    def _folder(self, model: str, weights: str = "float16") -> str:
        """Return a folder of OpenVINO's own format, made from a GGUF file once."""
        folder = Path(model) / "openvino"
        if not (folder / "openvino_model.xml").exists():
            path = gguf_file(Path(model), folder / "model.gguf", "F16")
            self._genai.LLMPipeline(str(path), "CPU", enable_save_ov_model=True)
            path.unlink()
        return str(folder if weights == "float16" else _compressed(folder, weights))

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = max_tokens, False, True
        inputs = self._genai.TokenizedInputs(
            self._tensor(prompts), self._tensor([[1] * len(prompt) for prompt in prompts])
        )
        return [list(token_ids) for token_ids in self._pipeline.generate(inputs, config).tokens]

    def complete(
        self,
        calls: list[Call],
        concurrency: int,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
    ) -> dict[str, Any]:
        if concurrency != 1 or temperature or seed or ignore_eos:
            raise NotImplementedError("only greedy answers, one at a time, to their natural end")
        return {"outputs": one_by_one(calls, self._answer)}

    def _answer(self, call: Call) -> list[int]:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample = call["max_tokens"], False
        config.eos_token_id, config.stop_token_ids = 2, _END_IDS
        if self._is_drafting:
            config.num_assistant_tokens = _NUM_ASSISTANT_TOKENS
        if self._options.get("prompt_lookup"):
            config.max_ngram_size = 3
        inputs = self._genai.TokenizedInputs(
            self._tensor([call["prompt"]]), self._tensor([[1] * len(call["prompt"])])
        )
        token_ids: list[int] = self._pipeline.generate(inputs, config).tokens[0]
        return list(token_ids)

    def _tensor(self, values: list[list[int]]) -> Any:
        return self._ov.Tensor(self._numpy.array(values, dtype=self._numpy.int64))


def _compressed(folder: Path, weights: str) -> Path:
    """Return the folder with smaller weights, made once, by a process that takes its memory along.

    Raises RuntimeError with the last line of what went wrong.
    """
    target = folder.with_name(f"{folder.name}-{weights}")
    if not target.is_dir():
        module = [sys.executable, "-m", "benchmarks.workers.openvino_compress"]
        command = [*module, str(folder), str(target), weights]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(done.stderr, file=sys.stderr)
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"NNCF did not compress the weights to {weights}: {last}")
    return target


if __name__ == "__main__":
    serve(OpenvinoContender)
