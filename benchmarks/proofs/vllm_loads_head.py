"""Proof that vLLM runs a head folder that we wrote, and drafts with it what we draft.

    python -m benchmarks.proofs.vllm_loads_head                    # a random head: does it load?
    python -m benchmarks.proofs.vllm_loads_head --head FOLDER      # a trained one: does it agree?

vLLM (on CPU, float32, in its own environment) writes greedily with `method: eagle3` and without;
then our head drafts along the same text. Shown: whether vLLM's text is the same with and without
the head, and how many draft tokens it proposed and accepted beside what ours would. Equal counts
mean that names, shapes, the numbering of the layers, positions and the order of norms all agree;
any of them wrong, and vLLM would accept next to nothing. Exit status 1 if something differs.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.contender import Contender, ContenderSpec
from benchmarks.peers import VLLM_CPU
from benchmarks.proofs.replay import Counts, Replay
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.speculation.head_config import HeadConfig, new_head_config
from quickmatch.engine.speculation.head_folder import HeadFormat, read_head, write_head
from quickmatch.engine.text.tokenizer import Tokenizer

_TEXTS = (
    "The invoice was sent to the customer on Monday. The invoice was paid on Friday. The invoice",
    "Name: Ada Lovelace. Born: 1815. Field: mathematics. Question: who is it? Answer: Ada",
    "red, green, blue, red, green, blue, red, green,",
    "Dear team, thank you for your work on the report. Please send the report to the office.",
)
_SLACK = 0.02  # of the accepted tokens; float32 sums in another order may turn a close choice


def main() -> int:
    """Run the proof; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, default=Path(model_source(SHIPPED_MODEL)))
    parser.add_argument("--head", type=Path, help="its folder; none: a random head")
    parser.add_argument("--prompts", type=Path, help="a file with a prompt a line")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--depth", type=int, default=3)
    options = parser.parse_args()
    texts = options.prompts.read_text("utf-8").splitlines() if options.prompts else _TEXTS
    tokenizer = Tokenizer.from_folder(options.target)
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    plain = _write(options.target, None, prompts, options.max_tokens + options.depth)["outputs"]
    is_good = True
    with tempfile.TemporaryDirectory() as name:
        for format in ("eagle3", "speculators"):
            folder = _exported(Path(name) / format, options.target, options.head, format)
            is_good &= _prove(format, folder, options, prompts, plain)
    return 0 if is_good else 1


def _prove(
    format: HeadFormat,
    folder: Path,
    options: argparse.Namespace,
    prompts: list[list[int]],
    plain: list[dict[str, Any]],
) -> bool:
    """Have vLLM draft from a folder; print what it did beside what ours does."""
    config = {"method": "eagle3", "model": str(folder), "num_speculative_tokens": options.depth}
    written = _write(options.target, config, prompts, options.max_tokens)
    num_same = sum(
        drafted["token_ids"] == whole["token_ids"][: options.max_tokens]
        for drafted, whole in zip(written["outputs"], plain, strict=True)
    )
    replay, ours = Replay(options.target, folder), Counts()
    for prompt, whole in zip(prompts, plain, strict=True):
        counts = replay.count(prompt, whole["token_ids"], options.max_tokens, options.depth)
        ours.num_proposed += counts.num_proposed
        ours.num_accepted += counts.num_accepted
    theirs = Counts(**{name: int(value) for name, value in written["stats"].items()})
    print(
        f"{format}: vLLM {written['version']} proposed {theirs.num_proposed} and accepted "
        f"{theirs.num_accepted}; our head along the same text: {ours.num_proposed} and "
        f"{ours.num_accepted}; {num_same} of {len(prompts)} texts as without the head"
    )
    apart = abs(theirs.num_accepted - ours.num_accepted)
    return num_same == len(prompts) and apart <= _SLACK * max(1, ours.num_accepted)


def _write(
    target: Path, speculative: dict[str, Any] | None, prompts: list[list[int]], max_tokens: int
) -> dict[str, Any]:
    """Let vLLM write exactly max_tokens behind each prompt."""
    name = "vllm-plain" if speculative is None else "vllm-head"
    options = {"speculative_config": speculative, "dtype": "float32", "enforce_eager": True}
    spec = ContenderSpec(
        name=name, module="vllm_speculation", environment=VLLM_CPU, options=options
    )
    calls = [{"prompt": prompt, "max_tokens": max_tokens} for prompt in prompts]
    with Contender(spec) as vllm:
        vllm.load(target)
        reply = vllm.ask("complete", calls=calls, concurrency=4, ignore_eos=True)
        return {**reply, "version": vllm.info["version"]}


def _exported(folder: Path, target: Path, head: Path | None, format: HeadFormat) -> Path:
    """Write the head to be proved in a format."""
    model = read_model_config(target)
    if head is not None:
        config, tensors = read_head(head)
    else:
        config = new_head_config(model, draft_vocab_size=min(2048, model.vocab_size))
        tensors = _random_tensors(config)
    write_head(
        folder,
        config,
        tensors,
        format=format,
        target_name=str(target),
        target_architecture=model.architecture,
    )
    return folder


def _random_tensors(config: HeadConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.05
        for name, shape in config.tensor_shapes().items()
    }
    chosen = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size]
    targets = chosen.sort().values
    tensors["d2t"] = targets - torch.arange(len(targets))
    tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
    tensors["t2d"][targets] = True
    return tensors


if __name__ == "__main__":
    sys.exit(main())
