"""Messages between the fleet and an engine process: msgspec structs, as msgpack on ZeroMQ.

The fleet sends commands; the engine answers with events. Every message is one frame. Tokens
only: text is made and matched on the fleet's side (engine/text), in its process, so that the
engine's step never waits for it.
"""

from typing import Any

import msgspec

from quickmatch.core.sampling import SamplingParams


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: the type's name travels with it, so that one decoder reads them all."""


# ---- commands: fleet -> engine.


class Generate(Message, frozen=True, kw_only=True):
    """Start one sequence. `sampling.stop` is ignored here: text belongs to the fleet's side."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    adapter: str | None = None  # adapter version id, "name@3"
    isolation_key: str = ""
    tenant: str = ""  # drafts learn from past outputs of the same tenant, key and weights only
    prediction_token_ids: list[int] = []  # what the caller expects the output to be


class Cancel(Message, frozen=True, kw_only=True):
    """Stop a sequence and free its blocks. Unknown ids are ignored."""

    request_id: str


class LoadAdapter(Message, frozen=True, kw_only=True):
    """Load a PEFT adapter folder under a version id. Answered by CommandDone."""

    command_id: str
    adapter: str
    path: str


class UnloadAdapter(Message, frozen=True, kw_only=True):
    """Forget an adapter once its running sequences are done. Answered by CommandDone."""

    command_id: str
    adapter: str


class LoadDraft(Message, frozen=True, kw_only=True):
    """Draft with this trained head from the next step on. Answered by CommandDone.

    It takes the place of the one that stood for the same `adapter`, between two steps.
    """

    command_id: str
    draft: str  # its version id, "name@3"
    path: str  # a folder in the EAGLE-3 or the speculators format
    adapter: str = ""  # adapter version id that it was trained for; "": base, and any without one


class UnloadDraft(Message, frozen=True, kw_only=True):
    """Forget the head that stands for `adapter`. Answered by CommandDone."""

    command_id: str
    adapter: str = ""


class Remember(Message, frozen=True, kw_only=True):
    """Put past outputs into the suffix index, oldest first. Not answered."""

    tenant: str
    outputs: list[list[int]]
    adapter: str | None = None  # adapter version id that wrote them
    isolation_key: str = ""  # that they were asked for with


class Shutdown(Message, frozen=True, kw_only=True):
    """Finish nothing more and exit."""


# ---- events: engine -> fleet.


class Ready(Message, frozen=True, kw_only=True):
    """Sent once, when the model is loaded and warm."""

    pid: int
    max_model_len: int  # tokens, prompt and completion together
    vocab_size: int
    model_bytes: int
    kv_bytes: int
    num_blocks: int
    block_size: int
    load_s: float
    device: str
    dtype: str


class LoadFailed(Message, frozen=True, kw_only=True):
    """Sent instead of Ready: the model cannot be served; the process exits after it."""

    message: str


class Tokens(Message, frozen=True, kw_only=True):
    """New tokens of one sequence, in order. `finish_reason` ends it: stop, length, cancel, error.

    logprobs: one entry a token, [(token_id, logprob), …], the sampled token first, then the
    most likely ones in order; empty when not asked for.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[list[tuple[int, float]]] = []
    finish_reason: str | None = None
    num_cached_tokens: int = 0
    error: str | None = None  # with finish_reason "error"
    error_code: str | None = None  # "queue_full", "context_length_exceeded", "adapter_not_found"
    queue_s: float = 0.0  # from arrival to first being scheduled; sent with the first tokens
    num_accepted_prediction_tokens: int = 0  # of these tokens, those that `prediction` foretold
    num_rejected_prediction_tokens: int = 0  # of its tokens, those that this step refuted


class CommandDone(Message, frozen=True, kw_only=True):
    """Answer to the commands that load and unload. `error` is None on success."""

    command_id: str
    error: str | None = None
    detail: dict[str, Any] = {}


class DraftSourceStats(msgspec.Struct, frozen=True, kw_only=True):
    """One drafter's tokens since the start."""

    num_proposed: int = 0
    num_accepted: int = 0


class AdapterSpeculation(msgspec.Struct, frozen=True, kw_only=True):
    """What speculation has done for the sequences of one set of weights; see SpeculationStats."""

    num_verified: int = 0
    num_plain: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    num_emitted: int = 0
    num_drifts: int = 0


class SpeculationStats(msgspec.Struct, frozen=True, kw_only=True):
    """What speculation has done since the start; rates are for the reader to form.

    A verification is one sequence in one step with a draft. Speed-up against plain decoding:
    plain_s / busy_s, where plain_s is what the same tokens would have taken without drafts, by
    plain steps measured on this machine between the others.
    """

    num_verified: int = 0  # verifications
    num_plain: int = 0  # sequences in a step that decoded one token without a draft
    num_proposed: int = 0
    num_accepted: int = 0
    num_emitted: int = 0  # tokens, bonus tokens included, of verifications and plain decodes
    busy_s: float = 0.0  # steps that only decoded, drafting included
    plain_s: float = 0.0
    draft_s: float = 0.0  # of busy_s, making and choosing drafts
    sources: dict[str, DraftSourceStats] = {}  # by drafter: prediction, suffix_local, …
    accepted_by_position: list[int] = []  # tokens, by their place in a draft: first, second, …
    index_tokens: int = 0
    index_bytes: int = 0
    drafts: dict[str, str] = {}  # adapter version id ("": base) -> version id of its head
    num_swaps: int = 0
    last_swap_s: float = 0.0  # the pause that the last swap of a head made
    num_drifts: int = 0  # times that acceptance fell below what calibration foretold
    adapters: dict[str, AdapterSpeculation] = {}  # by adapter version id, "": base


class Stats(Message, frozen=True, kw_only=True):
    """Sent about four times a second while busy, once a second while idle (a heartbeat)."""

    num_running: int
    num_waiting: int
    num_blocks_used: int
    num_blocks: int
    num_preempted: int  # since start
    num_prefill_tokens: int  # since start
    num_decode_tokens: int  # since start
    num_prefix_hit_tokens: int  # since start
    num_evicted_tokens: int  # since start; of sequences that outgrew max_kv_tokens
    num_steps: int
    step_s: float  # mean over the last period
    rss_bytes: int
    is_memory_low: bool = False  # new requests are refused meanwhile
    adapters: list[str] = []
    speculation: SpeculationStats | None = None  # None: turned off


Command = (
    Generate | Cancel | LoadAdapter | UnloadAdapter | LoadDraft | UnloadDraft | Remember | Shutdown
)
Event = Ready | LoadFailed | Tokens | CommandDone | Stats


def encoder() -> msgspec.msgpack.Encoder:
    """Return an encoder for any message."""
    return msgspec.msgpack.Encoder()


def command_decoder() -> msgspec.msgpack.Decoder[Command]:
    """Return the decoder that an engine process reads commands with."""
    return msgspec.msgpack.Decoder(Command)


def event_decoder() -> msgspec.msgpack.Decoder[Event]:
    """Return the decoder that the fleet reads events with."""
    return msgspec.msgpack.Decoder(Event)
