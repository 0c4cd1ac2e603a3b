"""What giving up KV costs: python -m benchmarks.micro.eviction --text FILE

Reads windows of a text as long as the model's context with all KV kept, and with max_kv_tokens at
shares of the context. Of the tokens beyond the limit it prints how often the likeliest token is
still the same, the perplexity of both, and how many bytes of KV a sequence holds.

With --credit FOLDER, a model tuned on the credit explanations (benchmarks/speculation makes one):
how many of its answers still name the right factors and figures, when a call's KV is limited.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.speculation.workloads import CREDIT, MAX_TOKENS, Item, credit
from examples.credit_cards.checks import fact_accuracy, number_accuracy
from quickmatch.core.sampling import SamplingParams
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.quantization.quality import compare
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.engine.wire import Generate

SHARES = (0.6, 0.4, 0.25)
_NUM_WINDOWS = 12
_NUM_CALLS = 100
_PLAIN = SpeculationConfig(drafters=())


def main(argv: list[str] | None = None) -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro.eviction", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, default=Path(model_source(SHIPPED_MODEL)))
    parser.add_argument("--text", type=Path, action="append", default=[], help="a plain text")
    parser.add_argument("--context", type=int, help="tokens of a window; default: the model's")
    parser.add_argument("--credit", type=Path, help="a model tuned on credit explanations")
    asked = parser.parse_args(argv)
    if asked.text:
        _show_texts(asked.model, asked.text, asked.context)
    if asked.credit:
        _show_credit(asked.credit)
    if not asked.text and not asked.credit:
        parser.error("give --text FILE or --credit FOLDER")


def _show_texts(model: Path, files: Sequence[Path], context: int | None) -> None:
    length = context or read_model_config(model).max_model_len
    tokenizer = Tokenizer.from_folder(model)
    windows = []
    for file in files:
        ids = tokenizer.encode(file.read_text(encoding="utf-8"))
        starts = range(0, len(ids) - length + 1, length)
        windows += [ids[start : start + length] for start in starts][: _NUM_WINDOWS // len(files)]
    usual = EngineConfig(model=str(model), speculation=_PLAIN, max_num_seqs=1)
    table = Table(title=f"{len(windows)} windows of {length:,} tokens")
    for heading in ("KV kept", "tokens", "MiB", "same likeliest, beyond", "perplexity"):
        table.add_column(heading, justify="right")
    for share in SHARES:
        limit = int(length * share)
        found = compare(usual, replace(usual, max_kv_tokens=limit), windows)
        num_before = limit * len(windows)
        num_same = found.top1_agreement * found.num_tokens - num_before
        runner = ModelRunner(replace(usual, max_kv_tokens=limit, max_model_len=length))
        table.add_row(
            f"{share:.0%}",
            f"{limit:,}",
            f"{runner.kv_bytes / 2**20:.1f}",
            f"{num_same / (found.num_tokens - num_before):.1%}",
            f"{found.perplexity_reference:.2f} → {found.perplexity_quantized:.2f}",
        )
    Console().print(table)


def _show_credit(model: Path) -> None:
    items = credit(1200, _NUM_CALLS, 7).test[:_NUM_CALLS]
    tokenizer, template = Tokenizer.from_folder(model), ChatTemplate.from_folder(model)
    prompts = [
        tokenizer.encode(template.render(list(item.messages)), add_special_tokens=False)
        for item in items
    ]
    table = Table(title=f"{len(items)} credit explanations")
    for heading in ("KV kept", "tokens", "right rating and factors", "right figures", "same text"):
        table.add_column(heading, justify="right")
    whole = _answers(model, prompts, None)
    length = math.ceil(sum(map(len, [*prompts, *whole])) / len(prompts))
    for share in (1.0, *SHARES):
        limit = None if share == 1.0 else max(128, int(length * share))
        found = whole if limit is None else _answers(model, prompts, limit)
        texts = [tokenizer.decode(ids) for ids in found]
        table.add_row(
            f"{share:.0%}",
            str(limit or length),
            f"{_mean(fact_accuracy, items, texts):.0%}",
            f"{_mean(number_accuracy, items, texts):.0%}",
            f"{sum(a == b for a, b in zip(found, whole, strict=True)) / len(whole):.0%}",
        )
    Console().print(table)


def _answers(model: Path, prompts: Sequence[list[int]], limit: int | None) -> list[list[int]]:
    config = EngineConfig(model=str(model), speculation=_PLAIN, max_kv_tokens=limit)
    engine = Engine(ModelRunner(config), config)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS[CREDIT])
    for number, prompt in enumerate(prompts):
        engine.add(Generate(request_id=str(number), prompt_token_ids=prompt, sampling=params))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for event in engine.step():
            answers[int(event.request_id)] += event.token_ids
    return answers


def _mean(
    measure: Callable[[Sequence[Mapping[str, Any]], str], float],
    items: Sequence[Item],
    texts: Sequence[str],
) -> float:
    scores = [measure(item.messages, text) for item, text in zip(items, texts, strict=True)]
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
