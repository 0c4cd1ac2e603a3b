"""One sequence: a prompt, the tokens that followed it, and where its KV lies.

Owns: the token ids, the block table, how far the KV is computed, and the sampler's state. It does
not know the other sequences, the allocator or the model.

Invariant: `token_ids` is the prompt followed by `sample.output_token_ids`; the KV of the first
`num_computed_tokens` of them has been computed, and all is stored but what was given up
(eviction.py); `digests[i]` names the content of the i-th full block.
Tokens are only ever appended, so a digest once made stays right through any preemption.
"""

from dataclasses import dataclass, field
from enum import Enum

from quickmatch.engine.batch import SampleState
from quickmatch.engine.blocks import block_digest


class SequenceState(Enum):
    """Where a sequence stands. A preempted one is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Made by the engine at arrival; the scheduler alone moves it from state to state."""

    request_id: str
    id: int = -1  # a small number, unique in the engine's life
    token_ids: list[int]  # prompt, then output
    sample: SampleState
    max_len: int  # tokens in all; reaching it ends the sequence with "length"
    root: bytes  # digest of (adapter version, isolation key); block digests grow from it
    arrival_s: float
    adapter: str | None = None
    adapter_row: int = -1
    scope: str = ""  # whose past outputs its drafts may come from
    traffic: str = ""  # tenant and weights: what drifts are told apart by
    is_watched: bool = False  # a head is told of all its rows; set by the speculator

    # set by the scheduler
    state: SequenceState = SequenceState.WAITING
    block_table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_evicted_tokens: int = 0  # of these, those whose KV was given up
    num_published_blocks: int = 0  # leading blocks that other sequences may share
    num_promised_blocks: int = 0  # leading blocks that will be published once its prompt is through
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache at first admission
    first_scheduled_s: float | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.token_ids)

    @property
    def num_stored_tokens(self) -> int:
        """Tokens whose KV is held; the next one's place in the block table."""
        return self.num_computed_tokens - self.num_evicted_tokens

    @property
    def num_new_tokens(self) -> int:
        """Tokens whose KV is still to be computed: 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.sample.output_token_ids)

    def extend(self, token_ids: list[int]) -> None:
        """Add sampled tokens."""
        self.token_ids += token_ids
        self.sample.output_token_ids += token_ids

    def digest(self, index: int, block_size: int) -> bytes:
        """Return the digest of full block `index`; made once, then kept."""
        for i in range(len(self.digests), index + 1):
            parent = self.digests[i - 1] if i else self.root
            tokens = self.token_ids[i * block_size : (i + 1) * block_size]
            self.digests.append(block_digest(parent, tokens))
        return self.digests[index]

    def forget_kv(self) -> None:
        """Back to nothing computed; the tokens and their digests stay."""
        self.block_table.clear()
        self.num_computed_tokens = 0
        self.num_evicted_tokens = 0
        self.num_published_blocks = 0
        self.num_promised_blocks = 0
