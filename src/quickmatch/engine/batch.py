"""The seam between the scheduler (plain Python) and the model runner (tensors).

A step is one flattened batch: the new tokens of every scheduled sequence, one behind the other,
nothing padded. The scheduler builds a `StepBatch` from lists; the runner turns it into tensors,
runs the model once and answers with a `StepResult`.

A sequence's span is a whole prompt, a chunk of one, a single token to decode, or such a token
with a draft tree behind it. The KV of a sequence's `i`-th stored token lies in slot
`block_table[i // block_size] * block_size + i % block_size`; node `i` of a tree is put where
token `context_len + 1 + i` would be, and moved to its own place if it is accepted.
"""

from dataclasses import dataclass, field

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.grammar import GrammarState
from quickmatch.engine.speculation.tree import DraftTree


@dataclass(slots=True)
class SampleState:
    """What the sampler has to know of one sequence; owned by the sequence, kept between steps.

    `seed` is always set here (drawn at arrival where the caller gave none): the token at
    position p is chosen with a generator keyed by (seed, p), whatever is batched beside it.
    """

    params: SamplingParams
    seed: int
    prompt_token_ids: list[int]
    output_token_ids: list[int] = field(default_factory=list)
    eos_token_ids: tuple[int, ...] = ()  # masked while fewer than min_tokens are out
    grammar: GrammarState | None = None  # where params ask for one
    takes_argmax: bool = field(init=False)  # of the logits as they are, once min_tokens are out

    def __post_init__(self) -> None:
        params = self.params
        is_changed = params.logit_bias or params.has_penalties or self.grammar is not None
        self.takes_argmax = params.is_greedy and not is_changed


@dataclass(slots=True)
class Span:
    """The new tokens of one sequence in a step."""

    start: int  # row of its first token in the flattened batch
    num_tokens: int
    context_len: int  # tokens of the sequence whose KV is stored; their number, not a position
    block_table: list[int]
    adapter_row: int  # index into the loaded adapters; -1: base only
    sample: SampleState | None  # None: a chunk that is not the prompt's last; nothing is sampled
    tree: DraftTree | None = None  # its nodes are rows 1.. of the span; row 0 is the last token
    sequence_id: int = -1
    is_watched: bool = False  # heads are told of its rows
    next_token_id: int = -1  # of a chunk that is not the last: the prompt's token after it


@dataclass(frozen=True, slots=True)
class Eviction:
    """KV of one sequence to be given up (eviction.py).

    In every layer and head, as many of the tokens in `sources` as there are targets stay.
    """

    sources: list[int]  # slots of all the sequence's tokens, in order
    targets: list[int]  # slots that those that stay move to, in order; may overlap sources
    num_first: int  # leading tokens that stay in any case
    num_last: int  # and trailing ones
    sequence_id: int = -1


@dataclass(slots=True)
class StepBatch:
    """One step's work. Row r of the flat lists is one token."""

    token_ids: list[int]  # [num_tokens]
    positions: list[int]  # [num_tokens]
    slots: list[int]  # [num_tokens] where each token's KV is written
    spans: list[Span]
    evictions: list[Eviction] = field(default_factory=list)  # to be done before the tokens run
    preempted: list[int] = field(default_factory=list)  # sequences that gave their slots back


@dataclass(slots=True)
class Sampled:
    """What was chosen for one span that had `sample` set: a token, or several where a draft held.

    The first `len(accepted)` tokens are those of the accepted nodes; the last is the target's own.
    """

    token_ids: list[int]
    accepted: list[int] = field(default_factory=list)  # nodes of the span's tree, root first
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)  # one entry a token,
    # if asked for: the chosen token first, then the k most likely


@dataclass(slots=True)
class StepResult:
    """Answers in the order of the batch's spans; None where nothing was to be sampled."""

    sampled: list[Sampled | None]
    told_s: float = 0.0  # of the step: telling heads of their sequences' rows


def rows_to_sample(spans: list[Span]) -> list[int]:
    """Return the last row of each span that samples; of one with a draft, every row."""
    rows: list[int] = []
    for span in spans:
        if span.sample is not None:
            end = span.start + span.num_tokens
            rows += range(end - 1 if span.tree is None else span.start, end)
    return rows
