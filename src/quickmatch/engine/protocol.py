"""What the engine needs of the model side, so that it can be told without tensors."""

from typing import Any, Protocol

from quickmatch.engine.batch import StepBatch, StepResult
from quickmatch.engine.engine_adapters import AdapterRunner
from quickmatch.engine.eviction import KVLimit
from quickmatch.engine.grammar import Grammars
from quickmatch.engine.speculation.speculator import DraftRunner


class Runner(DraftRunner, AdapterRunner, Protocol):
    """`runner.ModelRunner` is the real one."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def kv_limit(self) -> KVLimit | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def grammars(self) -> Grammars: ...

    def free_memory_bytes(self) -> int:
        """Return what is left of the machine's memory, or the container's."""

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one flattened batch and sample where its spans ask for it."""

    def read_draft(self, path: str) -> Any:
        """Read a trained head, changing nothing; in any thread. Raises ConfigError."""

    def put_draft(self, adapter: str, draft: str, head: Any) -> None:
        """Let a head that was read draft for an adapter ("": base) while that is in memory."""

    def unload_draft(self, adapter: str) -> None:
        """Forget an adapter's head. Raises ConfigError if there is none."""

    @property
    def draft_versions(self) -> dict[str, str]:
        """Version ids of the loaded heads, by adapter."""
