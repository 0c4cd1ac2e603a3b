"""Rounds a whole model, one decoder layer after the other, with or without calibration.

Owns the order and what a layer's rounding is fitted to: with calibration text, each layer sees
what the layers before it give once they are rounded, so that it makes up for some of their errors
too. Memory holds the model, the text's hidden states and the second moments of one layer's inputs.
Knows no files but the model's own; writer.py keeps what comes out.

The layers are run by transformers, loaded only when there is text to calibrate with: they are to
be run one at a time with hooks, in any format, and speed counts little here.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.engine.folder import read_safetensors_header, weight_files
from quickmatch.engine.loader import Checkpoint
from quickmatch.engine.model_config import ModelConfig, read_model_config
from quickmatch.engine.precision import choose_dtype
from quickmatch.engine.quantization.folder import read_stored_format
from quickmatch.engine.quantization.formats import QuantizedTensor, WeightFormat, quantize
from quickmatch.engine.quantization.gptq import quantize_calibrated

Progress = Callable[[int, int], None]  # layers done, of so many
_LINEAR = re.compile(r"model\.layers\.(\d+)\..+\.weight")


def quantize_model(
    folder: Path,
    form: WeightFormat,
    *,
    calibration: Sequence[Sequence[int]] | None,
    progress: Progress,
) -> Iterator[tuple[str, QuantizedTensor]]:
    """Yield every linear layer of the decoder by name, rounded; embedding and head stay out.

    calibration: token ids of texts like those that will be served; None: plain rounding.
    Raises ModelLoadError where the model is quantized already or is not supported, ConfigError
    where there is no calibration token or a width cannot be cut into groups.
    """
    config = read_unquantized(folder)
    if calibration is None:
        return _plain(folder, form, config, progress)
    sequences = [ids[: config.max_model_len] for ids in calibration if ids]
    if not sequences:
        raise ConfigError("the calibration text has no token; give a file with text")
    return _calibrated(folder, form, config, sequences, progress)


def read_unquantized(folder: Path) -> ModelConfig:
    """Return a model's shape. Raises ModelLoadError if its weights are quantized already."""
    stored = read_stored_format(folder)
    if stored is not None:
        raise ModelLoadError(
            f"{folder} is quantized already ({stored.method}); give the bf16 weights of this model"
        )
    return read_model_config(folder)


def _plain(
    folder: Path, form: WeightFormat, config: ModelConfig, progress: Progress
) -> Iterator[tuple[str, QuantizedTensor]]:
    checkpoint = Checkpoint(folder, dtype=torch.float32, device=torch.device("cpu"))
    names: list[list[tuple[str, list[int]]]] = [[] for _ in range(config.num_layers)]
    for path in weight_files(folder):
        for name, entry in read_safetensors_header(path).items():
            found = _LINEAR.fullmatch(name)
            if found and len(entry["shape"]) == 2 and int(found[1]) < config.num_layers:
                names[int(found[1])].append((name, entry["shape"]))
    for index, layer in enumerate(names):
        for name, (rows, columns) in layer:
            yield (
                name.removesuffix(".weight"),
                quantize(checkpoint.matrix(name, rows, columns), form),
            )
        progress(index + 1, config.num_layers)


def _calibrated(
    folder: Path,
    form: WeightFormat,
    config: ModelConfig,
    sequences: Sequence[Sequence[int]],
    progress: Progress,
) -> Iterator[tuple[str, QuantizedTensor]]:
    decoder = _load(folder, config)
    layers = list(decoder.layers)
    texts = [_enter(decoder, layers, ids) for ids in sequences]
    for index, layer in enumerate(layers):
        moments = _Moments(layer)
        for text in texts:
            text.run(layer, index)
        moments.close()
        for name, linear in moments.linears.items():
            rounded = quantize_calibrated(linear.weight, moments.of(name), form)
            linear.weight.copy_(rounded.dequantized(linear.weight.dtype))
            yield f"model.layers.{index}.{name}", _on_cpu(rounded)
        for text in texts:
            text.hidden = text.run(layer, index)
        progress(index + 1, len(layers))


@dataclass(slots=True)
class _Text:
    """One calibration text on its way through the layers."""

    hidden: Tensor  # [1, num_tokens, hidden], what enters the next layer
    options: list[dict[str, Any]]  # what the model gives each layer beside it: masks, rotations

    def run(self, layer: nn.Module, index: int) -> Tensor:
        """Return what the layer gives for it."""
        out = layer(self.hidden, **self.options[index])
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found


class _Moments:
    """Sums xᵀx over the inputs of a layer's linear modules, while the layer runs."""

    def __init__(self, layer: nn.Module) -> None:
        self.linears = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        self._sums: dict[str, Tensor] = {}
        self._owners: dict[str, str] = {}  # query, key and value see the same inputs: one sum
        self._last: Tensor | None = None
        self._owner = ""
        self._hooks = [
            linear.register_forward_pre_hook(self._hook(name))
            for name, linear in self.linears.items()
        ]

    def of(self, name: str) -> Tensor:
        """Return the sum of a linear module's inputs: [in, in] float32."""
        return self._sums[self._owners[name]]

    def close(self) -> None:
        """Stop watching."""
        self._last = None
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args[0] is self._last:
                self._owners[name] = self._owner
                return
            self._last, self._owner = args[0], name
            self._owners[name] = name
            x = args[0].flatten(0, -2).float()  # [num_tokens, in]
            if name not in self._sums:
                self._sums[name] = x.new_zeros(x.shape[1], x.shape[1])
            self._sums[name].addmm_(x.T, x)

        return see


def _load(folder: Path, config: ModelConfig) -> Any:
    """Return transformers' decoder without its head, its weights free to be changed."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # whoever asked has one of its own
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_dtype("auto", config.dtype, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(f"cannot load model {folder}: {reason}; check the folder") from error
    model.requires_grad_(False)
    return model.to(device).eval().model


def _enter(decoder: Any, layers: Sequence[nn.Module], token_ids: Sequence[int]) -> _Text:
    """Return a text before the first layer, with what the model gives each layer to work with.

    The layers stand still meanwhile: they pass on what they are given, which costs nothing.
    """
    entered: list[Tensor] = []
    options: list[dict[str, Any]] = []

    def stand_still(hidden_states: Tensor, **named: Any) -> Tensor:
        entered.append(hidden_states)
        options.append(named)
        return hidden_states

    for layer in layers:
        vars(layer)["forward"] = stand_still
    try:
        decoder(torch.tensor([list(token_ids)], device=decoder.device), use_cache=False)
    finally:
        for layer in layers:
            del vars(layer)["forward"]
    return _Text(entered[0], options)


def _on_cpu(weight: QuantizedTensor) -> QuantizedTensor:
    zeros = None if weight.zeros is None else weight.zeros.cpu()
    return replace(weight, codes=weight.codes.cpu(), scales=weight.scales.cpu(), zeros=zeros)
