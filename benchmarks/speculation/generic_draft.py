"""The generic draft model: the base model's first layers, mended on general text.

It stands for what people download as a draft model: a little sibling that has seen books, manuals,
dialogues and questions with answers, and none of the workloads. Cutting layers off and training
what is left is how such siblings are made; a start from nothing learnt too little in minutes. Its
text comes from `$QUICKMATCH_BENCH_DATA/pretrain`, in the target's chat format where a record is a
conversation.

The loop is the product's own; the folder is made once (minutes) and is loaded by every contender
that drafts with a model.
"""

import gzip
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.models import MODELS_FOLDER
from benchmarks.speculation.targets import BASE
from benchmarks.speculation.training_bar import training_bar
from benchmarks.speculation.workloads import NoData, data_folder
from examples.credit_cards.screen import Screen
from quickmatch.tuning.encode import Encoded
from quickmatch.tuning.load import Loaded, training_dtype
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.settings import SftSettings
from quickmatch.tuning.sft import SftRun

_WINDOW = 256  # tokens of a row


@dataclass(frozen=True, slots=True)
class DraftRecipe:
    """Its depth, and the rows of 256 tokens that it learns from each source."""

    num_layers: int = 2  # of the base's six
    learning_rate: float = 1.5e-3
    batch_size: int = 16
    rows: tuple[tuple[str, int], ...] = (
        ("dialogues", 2400),
        ("t0_open", 1400),
        ("gsm8k", 1000),
        ("docs", 1400),
        ("facts_speeches", 1200),
        ("novels_eltec", 600),
        ("books_gutenberg", 600),
    )


def make_generic_draft(
    screen: Screen, recipe: DraftRecipe | None = None, *, root: Path = MODELS_FOLDER
) -> Path:
    """Return the model's folder, trained now unless it is there. Raises NoData."""
    recipe = recipe or DraftRecipe()
    files = _files(recipe)
    folder = root / f"generic-draft-{_fingerprint(recipe, files)}"
    if folder.is_dir():
        return folder
    part = folder.with_suffix(".part")
    (part / "work").mkdir(parents=True, exist_ok=True)
    model = _train(recipe, files, part, screen)
    weights = {n: t.detach().to(torch.bfloat16) for n, t in model.state_dict().items()}
    weights.pop("lm_head.weight")  # tied
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, part / name)
    (part / "config.json").write_text(json.dumps(_config(recipe), indent=2), encoding="utf-8")
    shutil.rmtree(part / "work")
    return part.rename(folder)


def _train(
    recipe: DraftRecipe, files: dict[str, Path], part: Path, screen: Screen
) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**_config(recipe)))
    base = load_file(BASE / "model.safetensors")
    left_over = model.load_state_dict(base, strict=False)
    if [name for name in left_over.missing_keys if name != "lm_head.weight"]:
        raise ValueError(f"the base model lacks {left_over.missing_keys}")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = [row for name, count in recipe.rows for row in _rows(files[name], count)]
    settings = SftSettings(
        epochs=1, learning_rate=recipe.learning_rate, batch_size=recipe.batch_size
    )
    plan = Plan.of(settings, len(rows), 0, recipe.learning_rate)
    cpu = torch.device("cpu")
    loaded = Loaded(model, tokenizer, cpu, training_dtype("auto", cpu)[0])
    loaded.choose_attention(_WINDOW)
    with training_bar(screen, "generic draft model", plan.total_steps) as listener:
        SftRun(
            loaded=loaded,
            train=rows,
            evaluation=[],
            settings=settings,
            plan=plan,
            folder=part / "work",
            run_key=part.name,
            listener=listener,
        ).run()
    return model


def _config(recipe: DraftRecipe) -> dict[str, object]:
    """The base's config with fewer layers."""
    config: dict[str, object] = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    return config | {"num_hidden_layers": recipe.num_layers}


def _files(recipe: DraftRecipe) -> dict[str, Path]:
    folder = data_folder() / "pretrain"
    files = {name: folder / f"{name}.jsonl.gz" for name, _ in recipe.rows}
    absent = [path.name for path in files.values() if not path.is_file()]
    if absent:
        raise NoData(f"{folder.name}/{absent[0]} is not in the benchmark's data folder")
    return files


def _rows(path: Path, count: int) -> Iterator[Encoded]:
    """Yield windows of one file's text, in file order, all tokens learnt."""
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    ids: list[int] = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            ids += tokenizer.encode(_text(json.loads(line))).ids
            while len(ids) >= _WINDOW:
                yield Encoded(ids[:_WINDOW], [1.0] * _WINDOW)
                del ids[:_WINDOW]
                count -= 1
                if count == 0:
                    return


def _text(record: dict[str, str]) -> str:
    """Return a record as text; conversations in ChatML, as the target's template writes them."""
    if "prompt" in record:
        turns = [("user", record["prompt"]), ("assistant", record["completion"])]
    elif record["text"].startswith("User: "):
        turns = []
        for line in record["text"].splitlines():
            role, _, said = line.partition(": ")
            turns.append((role.lower(), said))
    else:
        return record["text"] + "<|endoftext|>"
    return "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)


def _fingerprint(recipe: DraftRecipe, files: dict[str, Path]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for path in files.values():
        digest.update(path.read_bytes())
    digest.update((BASE / "model.safetensors").read_bytes())
    return digest.hexdigest()[:12]
