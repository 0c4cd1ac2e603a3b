"""What fewer bits or less KV cost: a model served in several ways, side by side on the same text.

Owns the measure. All run as they are served, one after the other so that one is in memory at a
time: the same pass, the same kernels. Of every token but a text's first, each says which token
it holds likeliest and how likely the text's own is. Knows no text, only token ids.
"""

import math
from collections import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState
from quickmatch.engine.blocks import BlockAllocator
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.folder import resolve_model
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.scheduler import Scheduler
from quickmatch.engine.sequence import Sequence

Progress = Callable[[int, int], None]  # tokens done, of so many
_CHUNK_TOKENS = 128  # whose logits are held at once
_LEAST_LEN = 16  # tokens of context that are made room for


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How far a quantized model is from its reference. Perplexities are a token's."""

    top1_agreement: float  # share of tokens that both hold likeliest, 0 to 1
    perplexity_reference: float
    perplexity_quantized: float
    num_tokens: int  # that were foretold


def compare(
    reference: EngineConfig,
    others: abc.Sequence[EngineConfig],
    sequences: abc.Sequence[abc.Sequence[int]],
    *,
    progress: Progress | None = None,
) -> list[Quality]:
    """Measure a model and others that stand for it on the same texts; one result each.

    reference, others: what to load, a folder or a format to round to at loading; what they
    say of memory and lengths is set here. sequences: token ids; texts longer than the model's
    context are cut, those of one token left out. Raises ConfigError where nothing is left,
    ModelLoadError as loading does.
    """
    longest = min(map(_context, (reference, *others)))
    texts = [list(ids[:longest]) for ids in sequences if len(ids) > 1]
    if not texts:
        raise ConfigError("there is no text of two tokens or more to measure on; give more text")
    total = (1 + len(others)) * sum(len(ids) - 1 for ids in texts)
    done = 0

    def advance(num_tokens: int) -> None:
        nonlocal done
        done += num_tokens
        if progress is not None:
            progress(done, total)

    first = _measure(reference, texts, advance)
    return [_against(first, _measure(other, texts, advance)) for other in others]


def _against(reference: "_Measured", other: "_Measured") -> Quality:
    pairs = zip(reference.best, other.best, strict=True)
    agreed = sum(int((a == b).sum()) for a, b in pairs)
    num_tokens = sum(map(len, reference.best))
    return Quality(
        top1_agreement=agreed / num_tokens,
        perplexity_reference=math.exp(reference.loss / num_tokens),
        perplexity_quantized=math.exp(other.loss / num_tokens),
        num_tokens=num_tokens,
    )


@dataclass(slots=True)
class _Measured:
    """What one model says of the texts."""

    best: list[Tensor]  # the likeliest token at each place of each text, on the CPU
    loss: float  # nats, over all places


def _measure(
    config: EngineConfig, texts: list[list[int]], advance: Callable[[int], None]
) -> _Measured:
    # One sequence of that length: the keys and values take no more memory than they need.
    length = max(_LEAST_LEN, *map(len, texts))
    runner = ModelRunner(replace(config, max_model_len=length, max_num_seqs=1))
    measured = _Measured([], 0.0)
    for number, ids in enumerate(texts):
        found = []
        for start, logits in _chunks(runner, number, ids):
            wanted = ids[start + 1 : start + 1 + len(logits)]  # nothing follows the last token
            own = torch.tensor(wanted, dtype=torch.int64, device=logits.device)
            logits = logits[: len(wanted)].float()
            measured.loss += float(F.cross_entropy(logits, own, reduction="sum"))
            found.append(logits.argmax(-1).cpu())
            advance(len(wanted))
        measured.best.append(torch.cat(found))
    return measured


def _context(config: EngineConfig) -> int:
    return read_model_config(resolve_model(config.model)).max_model_len


def _chunks(runner: ModelRunner, number: int, ids: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Run a text in chunks, as a prompt is served; yield the first token's place and the logits.

    Logits: [tokens of the chunk, vocab].
    """
    scheduler = Scheduler(
        BlockAllocator(runner.num_blocks, runner.block_size, prefix_caching=False),
        max_num_seqs=1,
        max_num_batched_tokens=_CHUNK_TOKENS,
        max_queue_len=1,
        kv_limit=runner.kv_limit,
    )
    sequence = Sequence(
        request_id=str(number),
        token_ids=ids,
        sample=SampleState(SamplingParams(), 0, ids),
        max_len=len(ids),
        root=b"",
        arrival_s=0.0,
    )
    scheduler.add(sequence)
    while sequence.num_new_tokens:
        start = sequence.num_computed_tokens
        batch = scheduler.schedule().batch
        # Every row is asked for, as a head's training does; the hidden states are not used.
        yield start, runner.features(batch, (0,), list(range(len(batch.token_ids))))[1]
        scheduler.advance(sequence, len(batch.token_ids))
