"""AutoRound and LLM Compressor on CPU: they write quantized folders, and say what these mean.

Weights are rounded to nearest, without calibration: it is layouts that are looked at. What a folder
means is asked of transformers in float32, activations unrounded: of the folder itself where its
tool decompresses it (compressed-tensors), of a dense twin with the same rounded weights where only
kernels for GPUs read it (GPTQ, AWQ).
"""

import importlib.metadata
import os
from pathlib import Path
from typing import Any

from benchmarks.workers.protocol import serve

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class QuantizersContender:
    """Wraps `auto_round.AutoRound` and `llmcompressor.oneshot`."""

    OPERATIONS = ("auto_round", "llm_compressor", "run")

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        from transformers import AutoTokenizer

        self._source, self._tokenizer = model, AutoTokenizer.from_pretrained(model)
        names = ("auto-round", "llmcompressor", "compressed-tensors", "transformers", "torch")
        return {name: importlib.metadata.version(name) for name in names}

    def auto_round(self, format: str, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Write a folder in one of AutoRound's formats; return where it lies."""
        from auto_round import AutoRound

        rounder = AutoRound(
            self._read(self._source, "bfloat16"),
            self._tokenizer,
            iters=0,
            disable_opt_rtn=True,
            device_map="cpu",
            **settings,
        )
        rounder.quantize_and_save(folder, format=format)
        found = next(iter(sorted(Path(folder).rglob("config.json"))))
        return {"folder": str(found.parent)}

    def llm_compressor(self, scheme: str, ignore: list[str], folder: str) -> dict[str, Any]:
        """Write a compressed-tensors folder of one of its preset schemes; `ignore`: but these."""
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        model = self._read(self._source, "bfloat16")
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=ignore)
        oneshot(model=model, recipe=recipe)
        model.save_pretrained(folder, save_compressed=True)
        self._tokenizer.save_pretrained(folder)
        return {"folder": folder}

    def run(self, folder: str, token_ids: list[int], dtype: str, file: str) -> dict[str, Any]:
        """Run a folder's model over a text and write what it makes of it, float32.

        `hidden` [tokens, hidden] enters the last layer; `logits` [tokens, vocab].
        """
        import torch
        from safetensors.torch import save_file

        model = self._read(folder, dtype)
        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is not None:
                scheme.input_activations = None
        with torch.inference_mode():
            out = model(torch.tensor([token_ids]), output_hidden_states=True)
        # The last of the hidden states is the norm's, the one before it enters the last layer.
        found = {"hidden": out.hidden_states[-2][0], "logits": out.logits[0]}
        save_file({name: tensor.float().contiguous() for name, tensor in found.items()}, file)
        return {}

    def _read(self, folder: str, dtype: str) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


if __name__ == "__main__":
    serve(QuantizersContender)
