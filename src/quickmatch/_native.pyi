"""Types of the native extension, src/native/module.cpp. It may be missing: users fall back."""

from collections.abc import Sequence

from quickmatch.engine.speculation.costs import StepCosts
from quickmatch.engine.speculation.tree import Draft as AnyDraft
from quickmatch.engine.speculation.tree import TreeColumns

# Bits (16: bfloat16); addresses of numbers or codes, of scales, of zeros (0: none); input groups.
MatrixParts = tuple[int, bool, int, int, int, int]

class Draft:
    def __len__(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def parents(self) -> list[int]: ...
    @property
    def confidences(self) -> list[float]: ...
    @property
    def sources(self) -> list[int]: ...
    @property
    def features(self) -> list[int]: ...

class SuffixIndex:
    def __init__(self, *, max_tokens: int, max_depth: int, min_confidence: float) -> None: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_past_bytes(self) -> int: ...
    @property
    def num_live_bytes(self) -> int: ...
    def start(self, sequence_id: int, scope: str, prompt: Sequence[int]) -> None: ...
    def extend(self, sequence_id: int, token_ids: Sequence[int]) -> None: ...
    def finish(self, sequence_id: int, remember: bool) -> None: ...
    def remember(self, scope: str, token_ids: Sequence[int]) -> None: ...
    def draft(self, sequence_id: int, max_nodes: int, ahead: Sequence[int]) -> Draft: ...

class Decoder:
    def __init__(self, shape: dict[str, float], *, num_threads: int) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    def set_ends(
        self, *, embedding: int, lm_head: MatrixParts, norm: int, cos: int, sin: int
    ) -> None: ...
    def add_layer(
        self,
        *,
        attention_norm: int,
        mlp_norm: int,
        head_norms: int,
        weights: Sequence[MatrixParts],
        biases: Sequence[int],
    ) -> None: ...
    def set_adapter(
        self, row: int, *, ranks: Sequence[int], downs: Sequence[int], ups: Sequence[int]
    ) -> None: ...
    def drop_adapter(self, row: int) -> None: ...
    def run(
        self,
        *,
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        row_adapters: Sequence[int],
        spans: Sequence[int],
        blocks: Sequence[int],
        parents: Sequence[int],
        wanted: Sequence[int],
        aux_layers: Sequence[int],
        windows: Sequence[int],
        logits: int,
        aux: int,
    ) -> list[int]: ...
    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None: ...
    def evict(
        self, sources: Sequence[int], targets: Sequence[int], *, num_first: int, num_last: int
    ) -> None: ...

class Head:
    def __init__(
        self,
        target: Decoder,
        *,
        shape: dict[str, float],
        weights: dict[str, int],
        target_ids: Sequence[int],
    ) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    def observe(
        self,
        *,
        sequence_id: int,
        start: int,
        rows: Sequence[int],
        next_token_ids: Sequence[int],
        blocks: Sequence[int],
        aux: Sequence[int],
    ) -> None: ...
    def forget(self, sequence_id: int) -> None: ...
    def draft(
        self,
        requests: Sequence[int],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        min_path: float,
        least_path: float,
    ) -> list[tuple[list[int], list[int], list[float]]]: ...

_DecoderType = type[Decoder]
_HeadType = type[Head]

class Products:
    """A submodule: the products of rows with a matrix, compiled for one instruction set."""

    @staticmethod
    def multiply(
        matrix: MatrixParts,
        *,
        bias: int,
        num_out: int,
        num_in: int,
        x: int,
        num_rows: int,
        y: int,
    ) -> None:
        """Write y [num_rows, num_out], of x [num_rows, num_in]; both are addresses of float32."""

class SoftwareTiles(Products):
    """The products of AMX with tiles in software, on any processor with AVX2: for tests."""

    @staticmethod
    def tiles_are_right() -> bool: ...

class Isa(Products):
    """A submodule: the decoder, compiled for one instruction set."""

    Decoder: _DecoderType
    Head: _HeadType

software_tiles: SoftwareTiles
amx: Isa
avx512bf16: Isa
avx512vnni: Isa
avx2vnni: Isa
avx2: Isa

def decoder_isas() -> list[str]:
    """Return the names of those that this processor can run, the quickest first."""

class Promises:
    @property
    def behind(self) -> float: ...
    def look(self, width: int) -> list[float]: ...
    def soften(self) -> None: ...
    def renew(self) -> None: ...

class Assessor:
    def __init__(self, *, max_depth: int, floor: float) -> None: ...
    @property
    def promises(self) -> Promises: ...
    @property
    def num_sequences(self) -> int: ...
    @property
    def drifts(self) -> dict[str, int]: ...
    def ask(self, sequence_id: int, now: int, longest_pause: int, /) -> bool: ...
    def gather(
        self,
        sequence_ids: list[int],
        trees: list[list[AnyDraft]],
        now: int,
        width: int,
        depth: int,
        renewed: tuple[int, ...] | None,
        /,
    ) -> None: ...
    def outlook(self, costs: StepCosts, /) -> tuple[float, list[float], list[int], list[float]]: ...
    def gain(self, num_nodes: int, /) -> float: ...
    def choose(
        self,
        costs: StepCosts,
        margin: float,
        max_rows: int,
        max_nodes: int,
        least_gain: float,
        /,
    ) -> tuple[int, list[TreeColumns | None]]: ...
    def choose_all(self, max_rows: int, max_nodes: int, /) -> list[TreeColumns | None]: ...
    def judge(
        self,
        sequence_id: int,
        token_ids: list[int],
        scope: str,
        is_learning: bool,
        was_plain: bool,
        /,
    ) -> tuple[list[int], bool, bool] | None: ...
    def refresh(self) -> None: ...
    def renew(self, source: int, /) -> None: ...
    def forget(self, sequence_id: int, /) -> None: ...
