"""Trains the base model through the curriculum of `settings.py`; resumes exactly after a kill.

Matrices of the layers learn by Muon, embeddings and norms by AdamW. A step's batch depends on the
seed and the step alone and a checkpoint is replaced in one move, so a run that was killed and
started again with the same command ends with the same weights.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.optim import AdamW, Muon, Optimizer

from recipes.base_model import circuits
from recipes.base_model.batches import Batches
from recipes.base_model.export import export
from recipes.base_model.model import BaseModel
from recipes.base_model.probe import lookup_accuracy, perplexity, probes
from recipes.base_model.settings import ModelSettings, Phase, TrainSettings
from recipes.base_model.text import Source, load_sources

EXAMPLES = """examples:
  python -m recipes.base_model.train --tokenizer build/base_model/tokenizer \\
      --work build/base_model --out build/base_model/export data/*.jsonl.gz
  the same command again resumes from the last checkpoint in --work
  --steps 300 stops (and decays the learning rate) earlier: a quick trial
"""


class Trainer:
    """The model, its optimizers and the number of steps done."""

    def __init__(self, settings: TrainSettings, device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, device
        self.model = BaseModel(settings.model)
        circuits.write_circuits(self.model, torch.Generator().manual_seed(settings.seed))
        self.model.to(device)
        self.optimizers = _optimizers(self.model, settings)
        self.step = 0
        self.num_tokens: dict[str, int] = defaultdict(int)  # by kind of row
        self.train_s = 0.0

    def train_step(self, batches: Batches) -> float:
        """One batch, one update; the loss before it."""
        started = time.monotonic()
        phase = self.settings.phase_at(self.step)
        tokens, weights, kinds = batches.batch(self.step, phase)
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.model.loss(tokens.to(self.device), weights.to(self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        scale = self.settings.lr_scale(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak_lr"]
            optimizer.step()
            optimizer.zero_grad()
        for kind in kinds:
            self.num_tokens[kind] += phase.length
        self.step += 1
        self.train_s += time.monotonic() - started
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Replace the checkpoint in one move: a kill leaves the old one or the new one."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "model_settings": asdict(self.settings.model),
            "step": self.step,
            "num_tokens": dict(self.num_tokens),
            "train_s": self.train_s,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(held)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak_lr"] = peak
        self.step, self.train_s = state["step"], state["train_s"]
        self.num_tokens = defaultdict(int, state["num_tokens"])


def _optimizers(model: BaseModel, settings: TrainSettings) -> list[Optimizer]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and not name.startswith("embed_tokens")
        (matrices if is_matrix else others).append(parameter)
    muon = Muon(
        matrices,
        lr=settings.matrix_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        ns_steps=settings.newton_schulz_steps,
    )
    adamw = AdamW(others, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def load_checkpoint_model(path: Path) -> BaseModel:
    """Only the model of a checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = BaseModel(ModelSettings(**state["model_settings"]))
    model.load_state_dict(state["model"])
    return model.eval()


def run(
    trainer: Trainer,
    batches: Batches,
    checkpoint: Path,
    measure: Callable[[], str],
    say: Callable[[str], None] = print,
) -> None:
    """Train to the last step, with progress lines, measures and checkpoints."""
    settings = trainer.settings
    losses: list[float] = []
    since, tokens_then = time.monotonic(), sum(trainer.num_tokens.values())
    while trainer.step < settings.num_steps:
        losses.append(trainer.train_step(batches))
        if trainer.step % settings.log_every == 0:
            now, num_tokens = time.monotonic(), sum(trainer.num_tokens.values())
            say(
                f"step {trainer.step}/{settings.num_steps} loss {sum(losses) / len(losses):.3f} "
                f"tokens {num_tokens} tokens/s {(num_tokens - tokens_then) / (now - since):.0f}"
            )
            losses, since, tokens_then = [], now, num_tokens
        last = trainer.step == settings.num_steps
        if trainer.step % settings.checkpoint_every == 0 or last:
            trainer.save(checkpoint)
        if trainer.step % settings.probe_every == 0 or last:
            say(f"step {trainer.step} {measure()}")
            since = time.monotonic()


def measures(
    model: BaseModel, tokenizer: Tokenizer, sources: list[Source], count: int = 40
) -> Callable[[], str]:
    """Probe accuracies and held-out perplexities as one line."""
    lookups = probes(tokenizer, count)

    def line() -> str:
        model.eval()
        parts = [
            f"{name} {lookup_accuracy(model, tokenizer, held):.3f}"
            for name, held in lookups.items()
        ]
        parts += [f"ppl[{each.name}] {perplexity(model, each, 6):.1f}" for each in sources]
        model.train()
        return "probe " + " ".join(parts)

    return line


def shortened(settings: TrainSettings, steps: int) -> TrainSettings:
    """The same run cut off at `steps`, the learning rate decayed by then."""
    phases: list[Phase] = []
    for phase in settings.phases:
        left = steps - sum(done.steps for done in phases)
        if left > 0:
            phases.append(replace(phase, steps=min(phase.steps, left)))
    return replace(settings, phases=tuple(phases))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="text files (.jsonl, .jsonl.gz, .txt)")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and token cache")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write at the end")
    parser.add_argument("--steps", type=int, help="stop, decayed, after so many steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = TrainSettings()
    if args.steps:
        settings = shortened(settings, args.steps)
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    cache = args.work / "tokens"
    sources = load_sources(args.files, tokenizer, cache, settings.max_train_tokens_a_source)
    trainer = Trainer(settings, args.device)
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"resumed at step {trainer.step}", flush=True)
    batches = Batches(tokenizer, sources, dict(settings.text_shares), settings.seed)

    def say(line: str) -> None:
        print(line, flush=True)

    run(trainer, batches, checkpoint, measures(trainer.model, tokenizer, sources), say)
    export(trainer.model, tokenizer, args.out)
    seconds, by_kind = trainer.train_s, dict(trainer.num_tokens)
    print(f"wrote {args.out}: {trainer.step} steps, {seconds:.0f} s, tokens by kind {by_kind}")


if __name__ == "__main__":
    main()
