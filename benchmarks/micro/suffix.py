"""What the suffix drafter costs: python -m benchmarks.micro.suffix

Fills the index with past outputs of a made-up language (sentence forms with slots, both Zipfian) to
100k and to 1M tokens, then drafts its way through new outputs: draft, keep what is right, tell the
index what was emitted. For the native and the plain index it prints µs a draft (median, p99; the
DraftTree included), µs a token to append to a live sequence, to start one and to remember, bytes a
remembered token (as reported, and as the process grew), and tokens emitted a step. "cold" empties
the processor's caches before each draft, as a large model's step does.

Where QUICKMATCH_BENCH_DATA is set, the same on real text: workloads/NAME/{train,test}.jsonl there,
with the shipped model's tokenizer.

Times are this thread's processor time, and of a draft the fastest of some runs through all texts:
other work on the machine empties the caches, too.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.speculation import suffix, suffix_index
from quickmatch.engine.speculation.tree import DraftTree
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer

Text = tuple[list[int], list[int]]  # prompt, output
PROMPT_TAIL = suffix_index.PROMPT_TAIL


def zipf(rng: random.Random, size: int) -> int:
    """A number below size; small ones are common, by a power of about 1."""
    return int(size ** rng.random()) - 1


class Language:
    """Texts that repeat themselves about as much as a product's answers do."""

    def __init__(self, seed: int, *, num_words: int = 6000, num_forms: int = 600) -> None:
        self._rng = rng = random.Random(seed)
        self._words = [
            [rng.randrange(8000) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
            for _ in range(num_words)
        ]
        self._forms = [  # a number: that word; None: a slot
            [
                None if rng.random() < 0.2 else zipf(rng, num_words)
                for _ in range(rng.randrange(5, 20))
            ]
            for _ in range(num_forms)
        ]

    def text(self, num_sentences: int) -> list[int]:
        """Return the tokens of so many sentences."""
        out: list[int] = []
        for _ in range(num_sentences):
            for word in self._forms[zipf(self._rng, len(self._forms))]:
                out += self._words[zipf(self._rng, len(self._words)) if word is None else word]
        return out

    def pairs(self) -> Iterator[Text]:
        """Yield prompts and outputs without end."""
        while True:
            yield self.text(10), self.text(self._rng.randrange(2, 20))


def real_text(folder: Path, part: str) -> list[Text]:
    """Return all workloads' conversations up to the last answer, and the answer, shuffled."""
    source = model_source(SHIPPED_MODEL)
    tokenizer, template = Tokenizer.from_folder(source), ChatTemplate.from_folder(source)
    out = []
    for path in sorted(folder.glob(f"workloads/*/{part}.jsonl")):
        for line in path.open(encoding="utf-8"):
            *messages, answer = json.loads(line)["messages"]
            prompt = template.render(messages)
            out.append((tokenizer.encode(prompt), tokenizer.encode(answer["content"])))
    random.Random(0).shuffle(out)
    return out


@dataclass
class Costs:
    """Nanoseconds of each call, and what the calls were about."""

    draft: list[int] = field(default_factory=list)
    cold: list[int] = field(default_factory=list)
    extend: int = 0
    start: int = 0
    num_steps: int = 0
    num_emitted: int = 0
    num_prompt: int = 0


def timed(work: Callable[[], object]) -> int:
    """Nanoseconds of processor time that a call takes."""
    before = time.thread_time_ns()
    work()
    return time.thread_time_ns() - before


def num_right(tree: DraftTree, output: list[int]) -> int:
    """How many tokens of the output the tree holds, from its start."""
    children, node, length = tree.children(), -1, 0
    while length < len(output) and output[length] in children.get(node, {}):
        node = children[node][output[length]]
        length += 1
    return length


def decode(
    drafter: suffix.SuffixDrafter, texts: list[Text], max_nodes: int, sweep: Callable[[], object]
) -> Costs:
    """Draft through the outputs; every 16th draft is made again with empty caches."""
    costs = Costs()
    for sequence_id, (prompt, output) in enumerate(texts):
        costs.start += timed(lambda: drafter.start(sequence_id, "a", prompt))  # noqa: B023
        costs.num_prompt += len(prompt)
        done = 0
        while done < len(output):
            trees: list[DraftTree] = []
            draft = lambda: trees.append(drafter.draft(sequence_id, max_nodes))  # noqa: B023, E731
            if costs.num_steps % 16 == 0:
                sweep()
                costs.cold.append(timed(draft))
            costs.draft.append(timed(draft))
            emitted = output[done : done + num_right(trees[-1], output[done:]) + 1]
            costs.extend += timed(lambda: drafter.extend(sequence_id, emitted))  # noqa: B023
            done += len(emitted)
            costs.num_emitted += len(emitted)
            costs.num_steps += 1
        drafter.finish(sequence_id, remember=False)
    return costs


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(drafter: suffix.SuffixDrafter, past: Iterator[Text], size: int) -> tuple[float, float]:
    """Remember outputs of `size` tokens. Return µs and bytes of memory, both a token."""
    documents: list[list[int]] = []
    num_tokens = 0
    while num_tokens < size:
        prompt, output = next(past)
        documents.append(prompt[-PROMPT_TAIL:] + output)
        num_tokens += len(documents[-1])
    before = resident_bytes()
    ns = sum(timed(lambda: drafter.remember("a", d)) for d in documents)  # noqa: B023
    return ns / num_tokens / 1e3, (resident_bytes() - before) / drafter.num_tokens


def measure(
    drafter: suffix.SuffixDrafter,
    past: Iterator[Text],
    texts: list[Text],
    size: int,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Fill the index, decode the texts; return the columns of a row."""
    junk = np.zeros(8_000_000)  # 64 MB, larger than most caches
    remember, grown = fill(drafter, past, size)
    runs = [
        decode(drafter, texts, options.nodes, lambda: np.add(junk, 1, out=junk))
        for _ in range(options.repeats)
    ]
    costs = runs[-1]
    draft = np.percentile(np.min([run.draft for run in runs], axis=0), (50, 99)) / 1e3
    cold = np.percentile(np.min([run.cold for run in runs], axis=0), (50, 99)) / 1e3
    return {
        "draft µs": draft[0],
        "p99": draft[1],
        "cold µs": cold[0],
        "cold p99": cold[1],
        "append µs": costs.extend / costs.num_emitted / 1e3,
        "start µs": costs.start / costs.num_prompt / 1e3,
        "remember µs": remember,
        "bytes": drafter.num_bytes / drafter.num_tokens,
        "grown": grown,
        "tokens a step": costs.num_emitted / costs.num_steps,
        "steps": costs.num_steps,
    }


def index_types() -> dict[str, Callable[..., suffix.SuffixIndex]]:
    """Return the indexes there are, by name."""
    types: dict[str, Callable[..., suffix.SuffixIndex]] = {"plain": suffix_index.SuffixIndex}
    return {"native": suffix.best_index_type(), **types}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--nodes", type=int, default=24, help="of a draft, at most")
    parser.add_argument("--texts", type=int, default=100, help="outputs to draft through")
    parser.add_argument("--plain-texts", type=int, default=5, help="the same for the plain index")
    parser.add_argument("--repeats", type=int, default=3, help="runs through the texts")
    options = parser.parse_args()
    folder = os.environ.get("QUICKMATCH_BENCH_DATA")
    for name, index_type in index_types().items():
        num_texts = options.texts if name == "native" else options.plain_texts
        for size in options.tokens:
            language = Language(0).pairs()
            made = [next(language) for _ in range(num_texts)]
            sources = {"made up": (language, made)}
            if folder:
                tests = real_text(Path(folder), "test")[:num_texts]
                sources["real"] = (iter(real_text(Path(folder), "train")), tests)
            for source, (past, texts) in sources.items():
                drafter = suffix.SuffixDrafter(
                    max_tokens=size, max_depth=16, min_confidence=0.05, index_type=index_type
                )
                row = measure(drafter, past, texts, size, options)
                shown = ", ".join(f"{key} {value:.4g}" for key, value in row.items())
                print(f"{name}, {size:,} tokens, {source} text: {shown}", flush=True)


if __name__ == "__main__":
    main()
