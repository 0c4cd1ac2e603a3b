"""Slots written and gathered, and how much memory an engine takes."""

from pathlib import Path

import pytest
import torch

from quickmatch.core.errors import ConfigError
from quickmatch.engine import kv_cache
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.kv_cache import KVCache, KVSize, size_kv_cache
from quickmatch.engine.model_config import ModelConfig
from tests.unit.engine.test_attention import config_of

CPU = torch.device("cpu")
MODEL: ModelConfig = config_of(4, 2, 8)  # 2 layers: 64 numbers a token, context of 64
BLOCK_BYTES = 64 * 4 * 4  # in float32, blocks of 4


def test_what_is_written_is_gathered() -> None:
    cache = KVCache(MODEL, 10, 4, dtype=torch.float32, device=CPU)
    kv = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))
    slots = [9 * 4 + 0, 9 * 4 + 1, 9 * 4 + 2, 9 * 4 + 3, 2 * 4 + 0]
    cache.write(1, torch.tensor(slots), kv)
    keys, values = cache.gather(1, torch.tensor([9, 2, 2, 9]), 2)
    assert keys.shape == values.shape == (2, 2, 8, 8)
    assert torch.equal(keys[:, 0, :5], kv[:, :2].transpose(0, 1))
    assert torch.equal(values[:, 0, :5], kv[:, 2:].transpose(0, 1))
    assert torch.equal(keys[:, 1, 4:], keys[:, 0, :4])
    assert not cache.gather(0, torch.tensor([9]), 1)[0].any()


def size(free_bytes: int = 1 << 40, **options: object) -> KVSize:
    config = EngineConfig(model="m", block_size=4, **options)  # type: ignore[arg-type]
    return size_kv_cache(config, MODEL, dtype=torch.float32, free_bytes=free_bytes)


def test_given_bytes_are_kept_to() -> None:
    assert size(kv_memory_bytes=20 * BLOCK_BYTES + 5) == KVSize(20, 64, 20 * BLOCK_BYTES)


def test_more_than_the_weights_leave_is_refused() -> None:
    assert size(20 * BLOCK_BYTES, kv_memory_bytes=20 * BLOCK_BYTES).num_blocks == 20
    with pytest.raises(ConfigError, match=r"weights leave 20479 bytes free; lower it"):
        size(20 * BLOCK_BYTES - 1, kv_memory_bytes=20 * BLOCK_BYTES)


def test_no_more_than_the_sequences_could_use() -> None:
    assert size(max_num_seqs=3).num_blocks == 3 * 16
    assert size(100 * BLOCK_BYTES, kv_memory_fraction=0.25).num_blocks == 25


def test_context_that_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as caught:
        size(kv_memory_bytes=8 * BLOCK_BYTES, max_model_len=33)
    assert caught.value.message == (
        "max_model_len is 33 but the KV memory holds 32 tokens; "
        "lower max_model_len or raise kv_memory_fraction"
    )
    assert size(kv_memory_bytes=8 * BLOCK_BYTES).max_model_len == 32
    assert "max_model_len is 32" in caplog.text
    with pytest.raises(ConfigError, match="the model was made for 64 tokens"):
        size(max_model_len=65)
    with pytest.raises(ConfigError, match="holds 0 tokens"):
        size(kv_memory_bytes=1)


def test_free_memory_is_what_the_container_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"memory.max": 1000, "memory.current": 400}
    monkeypatch.setattr(kv_cache, "_meminfo_available", lambda: 5000)
    monkeypatch.setattr(kv_cache, "_read_int", lambda path: limits.get(path.name))
    monkeypatch.setattr(kv_cache, "_file_cache", lambda _: 0)
    assert kv_cache.free_memory_bytes(CPU) == 600
    monkeypatch.setattr(kv_cache, "_file_cache", lambda _: 250)
    assert kv_cache.free_memory_bytes(CPU) == 850
    limits.clear()
    assert kv_cache.free_memory_bytes(CPU) == 5000
    monkeypatch.undo()
    assert kv_cache._read_int(Path("/no/such/file")) is None
    assert kv_cache.free_memory_bytes(CPU) > 0


def test_what_a_container_holds_of_files_counts_as_free(tmp_path: Path) -> None:
    # Guards: an engine that takes the files it has read for memory that runs out.
    stat = tmp_path / "memory.stat"
    stat.write_text("anon 700\nfile 300\nshmem 30\ninactive_file 200\nactive_file 70\n")
    assert kv_cache._file_cache(stat) == 270
    stat.write_text("anon 700\n")
    assert kv_cache._file_cache(stat) == 0
    assert kv_cache._file_cache(tmp_path / "none") == 0
