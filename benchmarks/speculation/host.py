"""What speculation costs beside the model: a suffix draft, a step's decisions, a head's swap.

    suffix draft     one `draft` of up to 24 nodes with 1,000,000 tokens of past outputs indexed
    controller       all decisions and lessons of one step with 8 sequences, each with a draft of
                     the suffix index and a chain of a head
    swap             the pause between two steps while a head takes the place of another

The first two run in this process, on real texts: explanations of the example's scripted writer.
"""

import random
import time
from collections.abc import Sequence
from statistics import quantiles

from tokenizers import Tokenizer

from benchmarks.rows import Row, at_most, single
from benchmarks.speculation.arms import ADAPTED
from benchmarks.speculation.bench import Bench
from benchmarks.speculation.running import running
from benchmarks.speculation.targets import BASE
from benchmarks.speculation.workloads import CREDIT, credit
from examples.credit_cards.writer import write
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.controller import Controller
from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.suffix import SuffixDrafter
from quickmatch.engine.speculation.tree import DraftTree, Source

_INDEX_TOKENS = 1_000_000
_SCOPE = "benchmark"
_NUM_DRAFTS = 2000
_NUM_WRITERS = 12
_NUM_SEQS = 8
_NUM_STEPS = 400
_NUM_SWAPS = 5
_MAX_NODES = 24
_PLAIN_S = 2e-3  # of a made-up step; what the controller takes does not depend on it


def measure_host_costs(bench: Bench) -> None:
    """Add the rows."""
    with bench.screen.stage("host", "what is spent beside the model"):
        texts = _texts(bench)
        suffix = _filled(texts)
        bench.report.add(*_suffix_rows(suffix, texts), *_controller_rows(suffix, texts))
        bench.report.add(*_swap_rows(bench))
        bench.write()


def _texts(bench: Bench) -> list[list[int]]:
    """Return token ids of enough explanations, and of a thousand that are not to be indexed.

    Each applicant's is written a dozen times, in other words: what a tenant's traffic looks like.
    """
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    items = credit(_INDEX_TOKENS // 60 // _NUM_WRITERS, 1000, bench.plan.seed + 100)
    written = [write(i.messages, seed) for seed in range(_NUM_WRITERS) for i in items.train]
    encoded = tokenizer.encode_batch([*written, *(item.answer for item in items.test)])
    return [encoding.ids for encoding in encoded]


def _filled(texts: Sequence[list[int]]) -> SuffixDrafter:
    suffix = SuffixDrafter(max_tokens=_INDEX_TOKENS, max_depth=16, min_confidence=0.1)
    for text in texts[:-1000]:
        suffix.remember(_SCOPE, text)
    return suffix


def _suffix_rows(suffix: SuffixDrafter, texts: Sequence[list[int]]) -> list[Row]:
    times = []
    for number, text in enumerate(random.Random(0).choices(texts[-1000:], k=_NUM_DRAFTS)):
        cut = len(text) // 2
        suffix.start(number, _SCOPE, text[:cut])
        suffix.extend(number, text[cut : cut + 1])
        start = time.perf_counter()
        suffix.draft(number, _MAX_NODES)
        times.append((time.perf_counter() - start) * 1e6)
        suffix.finish(number, remember=False)
    at = f"{suffix.num_tokens:,} tokens indexed"
    return [
        single(f"suffix draft, {at}", times, "µs", at_most(50.0)),
        single(f"suffix draft, {at}: 99 of 100 below", [quantiles(times, n=100)[98]], "µs"),
        single("suffix index, memory a token", [suffix.num_bytes / suffix.num_tokens], "bytes"),
    ]


def _controller_rows(suffix: SuffixDrafter, texts: Sequence[list[int]]) -> list[Row]:
    times = _controller_steps(suffix, texts)
    half = len(times) // 2  # the first half teaches it what drafts are worth
    name = f"controller, a step of {_NUM_SEQS} sequences"
    return [single(name, times[half:], "µs", at_most(100.0))]


def _controller_steps(suffix: SuffixDrafter, texts: Sequence[list[int]]) -> list[float]:
    """Let it choose and learn over real texts; return the microseconds of each step."""
    costs = CostTable()
    for num_rows in (1, 8, 16, 32, 64, 128, 200):
        for num_seqs in (1, 8):
            if num_rows >= num_seqs:
                costs.observe(num_seqs, num_rows, _PLAIN_S * (1 + num_rows / 64))
    controller, times = Controller(costs, SpeculationConfig()), []
    positions = dict.fromkeys(range(_NUM_SEQS), 1)
    for i in positions:
        suffix.start(i, _SCOPE, texts[-1 - i][:1])
    ids = list(positions)
    for _ in range(_NUM_STEPS):
        trees = [[suffix.draft(i, _MAX_NODES), _chain(texts[-1 - i], positions[i])] for i in ids]
        start = time.perf_counter()
        asked = [t if controller.should_draft(i) else [] for i, t in zip(ids, trees, strict=True)]
        controller.wants_model(ids, asked, able=[])
        chosen = controller.choose(ids, asked, max_rows=_NUM_SEQS * _MAX_NODES)
        spent_s = time.perf_counter() - start
        num_rows = num_emitted = 0
        for i, tree in zip(ids, chosen, strict=True):
            accepted = _accepted(tree, texts[-1 - i], positions[i]) if tree else []
            chosen_by_target = texts[-1 - i][positions[i] : positions[i] + len(accepted) + 1]
            start = time.perf_counter()
            controller.verified(i, tree, accepted, chosen_by_target, _SCOPE)
            spent_s += time.perf_counter() - start
            num_rows += 1 + (len(tree) if tree else 0)
            num_emitted += len(accepted) + 1
            _advance(suffix, texts[-1 - i], positions, i, len(accepted) + 1)
        start = time.perf_counter()
        controller.stepped(
            num_seqs=_NUM_SEQS,
            num_rows=num_rows,
            num_emitted=num_emitted,
            draft_s=1e-4,
            step_s=_PLAIN_S * (1 + num_rows / 64),
        )
        times.append((spent_s + time.perf_counter() - start) * 1e6)
    for i in ids:
        suffix.finish(i, remember=False)
    return times


def _chain(text: Sequence[int], position: int) -> DraftTree:
    """A head's chain of five that is right in four places of five."""
    token_ids = [
        t if (position + k) % 5 else 0 for k, t in enumerate(text[position : position + 5])
    ]
    return DraftTree.chain(token_ids, [0.8] * len(token_ids), Source.HEAD)


def _accepted(tree: DraftTree, text: Sequence[int], position: int) -> list[int]:
    """Return the nodes along which the tree foretells the text."""
    children, node, accepted = tree.children(), -1, []
    for token_id in text[position:]:
        node = children.get(node, {}).get(token_id, -1)
        if node < 0:
            break
        accepted.append(node)
    return accepted


def _advance(
    suffix: SuffixDrafter, text: Sequence[int], positions: dict[int, int], i: int, count: int
) -> None:
    """Emit so many tokens; a text that ends begins anew."""
    emitted = text[positions[i] : positions[i] + count]
    if emitted:
        suffix.extend(i, list(emitted))
    positions[i] += count
    if positions[i] >= len(text) - 1:
        suffix.finish(i, remember=False)
        suffix.start(i, _SCOPE, list(text[:1]))
        positions[i] = 1


def _swap_rows(bench: Bench) -> list[Row]:
    parts = bench.parts[CREDIT]
    if parts.head is None:
        return []
    with running([ADAPTED], parts) as arms:
        times = []
        for _ in range(_NUM_SWAPS):
            told = arms[ADAPTED].ask("load_draft", path=str(parts.head))
            if told is not None:
                times.append(told["swap_s"] * 1e3)
    return [single("swap of a head, pause", [max(times)], "ms", at_most(50.0))] if times else []
