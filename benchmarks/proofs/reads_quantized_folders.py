"""Proof that quantized folders of other tools mean to us what they mean to those who wrote them.

    python -m benchmarks.proofs.reads_quantized_folders                  # the model that ships
    python -m benchmarks.proofs.reads_quantized_folders --model FOLDER

AutoRound writes GPTQ's and AWQ's layouts and its own, LLM Compressor compressed-tensors' and FP8,
in an environment of their own. Each folder is read by our engine in float32 and by transformers
(workers/quantizers.py says how); both go through the same text. Shown: how far the hidden states
that enter the last layer are apart at most, in parts of the largest, and at how many places both
hold the same token likeliest, which may differ, as our output matrix is in 8 bits wherever the
layers are in few. What is not supported has to be refused. Exit status 1 if something differs.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.contender import Contender, ContenderSpec
from benchmarks.peers import QUANTIZERS
from quickmatch.core.errors import ModelLoadError
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.text.tokenizer import Tokenizer

_TEXT = (
    "The invoice was sent to the customer on Monday, and the customer paid it on Friday. Name: Ada "
    "Lovelace. Born: 1815. Field: mathematics. Question: who is it? Answer: Ada Lovelace, who "
    "wrote about the engine of Charles Babbage. Dear team, thank you for your work on the report; "
    'please send it to the office. {"city": "Bern", "population": 134000, "languages": ["German"]}'
)
# Groups of 128 do not divide what goes into the shipped model's down_proj.
_UNGROUPED = "re:.*down_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One folder to be written. tolerance: of hidden states, in parts of the largest."""

    form: str  # AutoRound's format, or LLM Compressor's scheme
    settings: dict[str, Any] = field(default_factory=dict)  # AutoRound's
    ignore: tuple[str, ...] = ("lm_head",)  # layers that LLM Compressor leaves as they are
    is_refused: bool = False
    dtype: str = "float32"  # what the reference runs in
    tolerance: float = 1e-5

    @property
    def name(self) -> str:
        """As the table names it."""
        if not self.settings:
            return f"LLM Compressor {self.form}"
        symmetric = "symmetric" if self.settings["sym"] else "with zero points"
        bits, size = self.settings["bits"], self.settings["group_size"]
        return f"AutoRound {self.form}, {bits} bits in {size}s, {symmetric}"


def _rounded(form: str, bits: int, size: int, *, sym: bool) -> Case:
    return Case(form=form, settings={"bits": bits, "group_size": size, "sym": sym})


# FP8 is read into bfloat16; transformers multiplies MXFP4 in bfloat16 alone.
CASES = (
    _rounded("auto_gptq", 4, 64, sym=True),
    _rounded("auto_gptq", 4, 64, sym=False),
    _rounded("auto_gptq", 8, 64, sym=True),
    _rounded("auto_awq", 4, 64, sym=False),
    _rounded("auto_awq", 4, 32, sym=True),
    _rounded("auto_round:auto_gptq", 4, 64, sym=True),
    _rounded("auto_round:gptqmodel", 4, 64, sym=False),
    _rounded("auto_round:auto_awq", 4, 64, sym=False),
    _rounded("llm_compressor", 4, 64, sym=True),
    Case(form="W8A16", ignore=("lm_head", _UNGROUPED)),
    Case(form="W4A16_ASYM", ignore=("lm_head", _UNGROUPED)),
    Case(form="W8A8"),
    Case(form="FP8_DYNAMIC", tolerance=0.02),
    Case(form="FP8_BLOCK", tolerance=0.02),
    Case(form="MXFP4A16", dtype="bfloat16", tolerance=0.05),
    Case(form="NVFP4A16", is_refused=True),
)


def main() -> int:
    """Run the proof; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=Path(model_source(SHIPPED_MODEL)))
    options = parser.parse_args()
    tokenizer = Tokenizer.from_folder(options.model)
    token_ids = tokenizer.encode(_TEXT, add_special_tokens=False)
    spec = ContenderSpec(name="quantizers", module="quantizers", environment=QUANTIZERS)
    is_good = True
    with Contender(spec) as tools, tempfile.TemporaryDirectory() as name:
        tools.load(options.model)
        print(", ".join(f"{tool} {version}" for tool, version in tools.info.items()), flush=True)
        for number, case in enumerate(CASES):
            is_good &= _prove(case, tools, Path(name) / str(number), token_ids)
    return 0 if is_good else 1


def _prove(case: Case, tools: Contender, work: Path, token_ids: list[int]) -> bool:
    """Have one folder written and read by both; print what they make of it."""
    folder = twin = _written(case, tools, work / "folder", case.form)
    if case.settings and case.form != "llm_compressor":
        twin = _written(case, tools, work / "twin", "fake")
    try:
        ours = _run(folder, token_ids)
    except ModelLoadError as error:
        print(f"{case.name}: refused: {error}", flush=True)
        return case.is_refused
    file = work / "run.safetensors"
    tools.ask("run", folder=twin, token_ids=token_ids, dtype=case.dtype, file=str(file))
    theirs = load_file(file)
    apart = float((ours["hidden"] - theirs["hidden"]).abs().max() / theirs["hidden"].abs().max())
    same = int((ours["logits"].argmax(-1) == theirs["logits"].argmax(-1)).sum())
    print(f"{case.name}: {apart:.1e} apart, {same} of {len(token_ids)} the same", flush=True)
    return not case.is_refused and apart <= case.tolerance


def _written(case: Case, tools: Contender, folder: Path, form: str) -> str:
    if case.settings:
        reply = tools.ask("auto_round", format=form, folder=str(folder), settings=case.settings)
    else:
        reply = tools.ask("llm_compressor", scheme=form, ignore=case.ignore, folder=str(folder))
    return str(reply["folder"])


def _run(folder: str, token_ids: list[int]) -> dict[str, Tensor]:
    """Run the text through our engine: `hidden`, entering the last layer, and `logits`."""
    num_tokens = len(token_ids)
    runner = ModelRunner(EngineConfig(model=folder, dtype="float32", device="cpu"))
    blocks = list(range(-(-num_tokens // runner.block_size)))
    rows = list(range(num_tokens))
    batch = StepBatch(token_ids, rows, rows, [Span(0, num_tokens, 0, blocks, -1, None)])
    hidden, logits = runner.features(batch, (runner.model_config.num_layers - 1,), rows)
    return {"hidden": hidden.float(), "logits": logits.float()}


if __name__ == "__main__":
    sys.exit(main())
