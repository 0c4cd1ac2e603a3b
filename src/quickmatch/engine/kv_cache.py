"""Where keys and values live: per layer one tensor of slots, and how many slots fit.

Owns the memory, not its use: which sequence holds which block is the scheduler's affair, and a
slot number is all that arrives here. Slot s is token s % block_size of block s // block_size.

Layout of a layer: [2 * num_kv_heads, num_slots, head_dim], keys first. Head before slot, so
that a sequence gathered by its blocks has each head's tokens lie one behind the other, as
attention kernels read them.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.batch import Eviction
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.eviction import KVLimit
from quickmatch.engine.model_config import ModelConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KVSize:
    """How much KV memory an engine has, and the context that it allows."""

    num_blocks: int
    max_model_len: int
    num_bytes: int
    limit: KVLimit | None = None  # of one sequence, where a context may outgrow it


class KVCache:
    """Keys and values of all layers, by slot."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._num_kv_heads = config.num_kv_heads
        shape = (2 * config.num_kv_heads, num_blocks * block_size, config.head_dim)
        self._layers = [_zeros(shape, dtype, device) for _ in range(config.num_layers)]
        self._by_block = [
            layer.view(shape[0], num_blocks, block_size * config.head_dim) for layer in self._layers
        ]
        self._head_dim = config.head_dim

    def write(self, layer: int, slots: Tensor, kv: Tensor) -> None:
        """Store kv [num_tokens, 2 * num_kv_heads, head_dim] at slots [num_tokens]."""
        self._layers[layer].index_copy_(1, slots, kv.transpose(0, 1))

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the slots `sources` to `targets` in every layer; [num_slots] each.

        All are read before any is written, so the two may overlap.
        """
        for layer in self._layers:
            layer.index_copy_(1, targets, layer.index_select(1, sources))

    def evict(self, eviction: Eviction) -> None:
        """See ForwardPass.evict."""
        num_kv, device = self._num_kv_heads, self._layers[0].device
        sources = torch.tensor(eviction.sources, device=device)
        targets = torch.tensor(eviction.targets, device=device)
        for layer in self._layers:
            held = layer.index_select(1, sources)  # [2 * kv_heads, tokens, head_dim]
            kept = tokens_to_keep(
                held[:num_kv], len(targets), eviction.num_first, eviction.num_last
            )
            picked = kept.repeat(2, 1)[:, :, None].expand(-1, -1, self._head_dim)
            layer.index_copy_(1, targets, held.gather(1, picked))

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and its values as they lie, [num_kv_heads, num_slots, head_dim]."""
        slots = self._layers[layer]
        return slots[: self._num_kv_heads], slots[self._num_kv_heads :]

    def gather(self, layer: int, block_ids: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [num_kv_heads, num_rows, num_tokens, head_dim], contiguous.

        block_ids: [num_rows * blocks a row], row after row.
        """
        picked = self._by_block[layer].index_select(1, block_ids)
        shaped = picked.view(2, self._num_kv_heads, num_rows, -1, self._head_dim)
        return shaped[0], shaped[1]


def tokens_to_keep(keys: Tensor, num_kept: int, num_first: int, num_last: int) -> Tensor:
    """Return the tokens that each head keeps, in order: [kv_heads, num_kept].

    keys: [kv_heads, tokens, head_dim]. Source: KeyDiff (arXiv 2504.15364).
    """
    directions = F.normalize(keys.float(), dim=-1)
    likeness = (directions @ directions.mean(1, keepdim=True).transpose(1, 2)).squeeze(-1)
    likeness[:, :num_first] = -math.inf
    likeness[:, keys.shape[1] - num_last :] = -math.inf
    return likeness.topk(num_kept, dim=1, largest=False).indices.sort(dim=1).values


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: a NaN in a slot never written would survive masking (0 * NaN).

    On CPUs by way of numpy, whose zeros are pages that the system hands out when they are first
    written: slots never used cost no memory, and the largest cache is made in no time.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(shape)


def size_kv_cache(
    config: EngineConfig, model: ModelConfig, *, dtype: torch.dtype, free_bytes: int
) -> KVSize:
    """Decide the number of KV blocks and the context length.

    free_bytes: what the weights leave. A kv_memory_bytes that is set is kept to; it is a
    ConfigError if more than that. Otherwise it is kv_memory_fraction of it, but no more than
    max_num_seqs sequences of full length could use. Where the model's own context does not fit, it
    is lowered and the reason is logged; one that was asked for and does not fit is a ConfigError.
    With max_kv_tokens only so much of a sequence has to fit.
    """
    wanted_len = config.max_model_len or model.max_model_len
    if wanted_len > model.max_model_len:
        raise ConfigError(
            f"max_model_len is {wanted_len} but the model was made for {model.max_model_len} "
            f"tokens; lower max_model_len to {model.max_model_len} or leave it out"
        )
    token_bytes = model.kv_numbers_per_token * dtype.itemsize
    if config.kv_cache_dtype == "int8":
        num_scales = model.kv_numbers_per_token // model.head_dim  # one a head, float32
        token_bytes = model.kv_numbers_per_token + 4 * num_scales
    block_bytes = token_bytes * config.block_size
    limit = _limit(config, model)
    longest_held = wanted_len if limit is None else min(wanted_len, limit.num_tokens)
    blocks_a_sequence = -(-longest_held // config.block_size)
    if config.kv_memory_bytes is not None:
        if config.kv_memory_bytes > free_bytes:
            raise ConfigError(
                f"kv_memory_bytes is {config.kv_memory_bytes} but the weights leave "
                f"{free_bytes} bytes free; lower it (--kv-memory-gb), or leave it out"
            )
        num_blocks = config.kv_memory_bytes // block_bytes
    else:
        budget = int(free_bytes * config.kv_memory_fraction)
        useful = blocks_a_sequence * config.max_num_seqs
        num_blocks = min(budget // block_bytes, useful)
    max_model_len = wanted_len
    if num_blocks < blocks_a_sequence:
        max_model_len = _fitting_len(config, wanted_len, num_blocks * config.block_size)
    if limit is not None and limit.num_tokens >= max_model_len:
        limit = None
    return KVSize(num_blocks, max_model_len, num_blocks * block_bytes, limit)


def _limit(config: EngineConfig, model: ModelConfig) -> KVLimit | None:
    if config.max_kv_tokens is None:
        return None
    if any(window is not None for window in model.windows):
        raise ConfigError(
            f"max_kv_tokens is {config.max_kv_tokens}, but this model's attention has a window, "
            "which bounds what it looks at already; leave max_kv_tokens out"
        )
    return KVLimit.of(config.max_kv_tokens, config.block_size)


def _fitting_len(config: EngineConfig, wanted_len: int, num_slots: int) -> int:
    if config.max_model_len is not None or num_slots == 0:
        raise ConfigError(
            f"max_model_len is {wanted_len} but the KV memory holds {num_slots} tokens; "
            "lower max_model_len or raise kv_memory_fraction"
        )
    logger.warning(
        "the model's context is %d tokens but the KV memory holds %d: max_model_len is %d; "
        "raise kv_memory_fraction for more",
        wanted_len,
        num_slots,
        num_slots,
    )
    return num_slots


def free_memory_bytes(device: torch.device) -> int:
    """Return the bytes still free on the device: the card's, or this machine's or container's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _meminfo_available()
    limit = _read_int(Path("/sys/fs/cgroup/memory.max"))
    used = _read_int(Path("/sys/fs/cgroup/memory.current"))
    if limit is not None and used is not None:
        free = min(free, max(limit - used + _file_cache(Path("/sys/fs/cgroup/memory.stat")), 0))
    return free


def _file_cache(path: Path) -> int:
    """Return the bytes of files that a container holds only until somebody wants the memory.

    They count as used, and fill what there is once a large model has been read.
    """
    try:
        fields = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
        return int(fields["active_file"]) + int(fields["inactive_file"])
    except (OSError, ValueError, KeyError):  # no such file
        return 0


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30  # no Linux: a modest guess, since the number cannot be had without a package


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
