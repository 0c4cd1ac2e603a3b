"""The targets: the shipped base model, fine-tuned for the workloads, as whole model folders.

Untuned, the base answers these prompts with loops, and a loop is the easiest text to draft: figures
taken on it would flatter every drafter. So the benchmark tunes it first, with the product's own
training loop, and writes merged folders that every peer can load.

    credit       LoRA on the credit explanations, merged: what the example's demo makes
    credit-deep  the same rows and a model three times as large, for what size changes: the base
                 with three blocks added behind each of its own, which begin as identities (after
                 LLaMA Pro, arXiv 2401.02415); all weights, two passes
    credit-wide  that one twice as wide, without training (widening.py): its weights lie in no cache
    mixed        the deep model, one pass over the train parts of all other workloads together
    mixed-wide   that one twice as wide

A folder is made once. Its name holds a fingerprint of recipe, rows and base weights, so that what
changes is made anew.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.models import MODELS_FOLDER
from benchmarks.speculation.training_bar import training_bar
from benchmarks.speculation.workloads import Item
from examples.credit_cards.screen import Screen
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.tuning.chat_rows import row_from_json
from quickmatch.tuning.encode import encode_rows
from quickmatch.tuning.load import Loaded, load_base, training_dtype
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.settings import SftSettings
from quickmatch.tuning.sft import SftRun, add_lora

BASE = Path(model_source(SHIPPED_MODEL))
_MAX_TOKENS = 1024  # of a row; longer ones are left out
_COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a target is trained. lora_rank 0: all weights. added_blocks: behind each block."""

    name: str
    lora_rank: int
    epochs: int
    learning_rate: float
    batch_size: int = 8
    added_blocks: int = 0

    @property
    def settings(self) -> SftSettings:
        """The recipe in the product's terms."""
        return SftSettings(
            lora_rank=self.lora_rank or 1,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_context_length=_MAX_TOKENS,
        )


CREDIT_RECIPE = Recipe("credit", lora_rank=8, epochs=5, learning_rate=4e-3)
DEEP_RECIPE = Recipe("credit-deep", lora_rank=0, epochs=2, learning_rate=1e-3, added_blocks=3)
MIXED_RECIPE = Recipe("mixed", lora_rank=0, epochs=1, learning_rate=1e-3, added_blocks=3)
# Rows of each workload in the mixture: by what a row costs and by how soon the model has the form.
MIXED_ROWS = {
    "context_qa": 400,
    "gsm8k": 2500,
    "intent_json": 1600,
    "sql_advising": 1500,
    "sql_spider": 2400,
    "support_dialogue": 1000,
    "code_edits": 1500,
}


def make_target(
    recipe: Recipe, items: Sequence[Item], screen: Screen, *, root: Path = MODELS_FOLDER
) -> Path:
    """Return the folder of the tuned model; trained now (minutes) unless it is there already."""
    folder = root / f"target-{recipe.name}-{_fingerprint(recipe, items)}"
    if folder.is_dir():
        return folder
    part = folder.with_suffix(".part")
    (part / "work").mkdir(parents=True, exist_ok=True)  # a broken run left its checkpoint there
    tuned = _train(recipe, items, part, screen)
    for name in _COPIED:
        shutil.copy(BASE / name, part / name)
    shape = json.loads((part / "config.json").read_text(encoding="utf-8"))
    shape["num_hidden_layers"] = len(tuned.model.layers)
    (part / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
    save_file(_weights(tuned), part / "model.safetensors", {"format": "pt"})
    shutil.rmtree(part / "work")
    return part.rename(folder)


def _train(recipe: Recipe, items: Sequence[Item], part: Path, screen: Screen) -> Any:
    """Return the tuned transformers model, adapters merged."""
    settings = recipe.settings
    loaded = _trainable(recipe)
    rows = [row_from_json(item.as_row(), shown_as=item.workload) for item in items]
    found = encode_rows(rows, loaded.tokenizer, _MAX_TOKENS, name=recipe.name)
    screen.say(f"target {recipe.name!r}: {found.describe(_MAX_TOKENS)}")
    encoded = found.rows
    loaded.choose_attention(max(len(row.token_ids) for row in encoded))
    plan = Plan.of(settings, len(encoded), 0, recipe.learning_rate)
    with training_bar(screen, f"target {recipe.name!r}", plan.total_steps) as listener:
        run = SftRun(
            loaded=loaded,
            train=encoded,
            evaluation=[],
            settings=settings,
            plan=plan,
            folder=part / "work",
            run_key=part.name,
            listener=listener,
        )
        run.run()
    return loaded.model.merge_and_unload() if recipe.lora_rank else loaded.model


def _trainable(recipe: Recipe) -> Loaded:
    if recipe.lora_rank:
        return add_lora(load_base(str(BASE)), recipe.settings, SHIPPED_MODEL)
    # Master weights in float32, products in what is quickest: see `Loaded.precision`.
    loaded = load_base(str(BASE), dtype="float32")
    _deepen(loaded.model, recipe.added_blocks)
    loaded.model.requires_grad_(True)
    dtype, _ = training_dtype("auto", loaded.device)
    return Loaded(loaded.model, loaded.tokenizer, loaded.device, dtype)


def _deepen(model: Any, added_blocks: int) -> None:
    """Put so many blocks behind each one that add nothing to the residual yet."""
    layers = []
    for layer in model.model.layers:
        layers.append(layer)
        for _ in range(added_blocks):
            block = copy.deepcopy(layer)
            torch.nn.init.zeros_(block.self_attn.o_proj.weight)
            torch.nn.init.zeros_(block.mlp.down_proj.weight)
            layers.append(block)
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the checkpoint in bfloat16; the tied output matrix is the embedding, kept once."""
    return {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }


def _fingerprint(recipe: Recipe, items: Sequence[Item]) -> str:
    of_recipe = {
        name: value for name, value in asdict(recipe).items() if value or name == "lora_rank"
    }
    told = json.dumps([of_recipe, [item.as_row() for item in items]], sort_keys=True)
    digest = hashlib.sha256(told.encode())
    digest.update((BASE / "model.safetensors").read_bytes())
    return digest.hexdigest()[:12]
