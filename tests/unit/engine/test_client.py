"""The client against a real engine process with a tiny random Llama."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from quickmatch.core.errors import (
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.client import EngineClient
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.wire import Generate
from tests.unit.engine.text.tokenizers_for_tests import train_byte_level

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 1024


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=2,
        bos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    train_byte_level().save(str(folder / "tokenizer.json"))
    return folder


def make_config(folder: Path, **settings: Any) -> EngineConfig:
    settings = {"dtype": "float32", "kv_memory_bytes": 4 << 20, "num_threads": 1, **settings}
    return EngineConfig(model=str(folder), **settings)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EngineClient]:
    """One engine for all tests that leave it alive."""
    run_dir = tmp_path_factory.mktemp("run")
    config = make_config(model_folder, max_num_seqs=16, max_queue_len=48)
    client = await EngineClient.start(config, run_dir)
    yield client
    await client.close()
    assert list(run_dir.iterdir()) == []


def request(name: str, prompt: list[int] | None = None, **sampling: Any) -> Generate:
    params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **sampling})
    return Generate(request_id=name, prompt_token_ids=prompt or [1, 5, 9], sampling=params)


async def collect(client: EngineClient, asked: Generate) -> list[int]:
    tokens: list[int] = []
    async for piece in client.generate(asked):
        tokens.extend(piece.token_ids)
    return tokens


async def test_ready_tells_what_was_loaded(client: EngineClient) -> None:
    ready = client.ready
    assert (ready.vocab_size, ready.max_model_len, ready.block_size) == (300, CONTEXT, 16)
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert ready.model_bytes > 0
    assert ready.kv_bytes <= 4 << 20
    assert ready.pid != os.getpid()
    assert client.is_alive


async def test_greedy_tokens_are_transformers_own(client: EngineClient, model_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    prompt = [1, 17, 42, 99]
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None
    )
    assert await collect(client, request("g", prompt, max_tokens=20)) == expected[0, 4:].tolist()


async def test_many_streams_are_not_mixed_up(client: EngineClient) -> None:
    asked = [
        request(f"m{i}", [1, *range(3, 4 + i)], max_tokens=10 + i, temperature=1.0, seed=i)
        for i in range(40)
    ]
    together = await asyncio.gather(*(collect(client, each) for each in asked))
    for each, tokens in list(zip(asked, together, strict=True))[::9]:
        alone = await collect(client, msgspec.structs.replace(each, request_id="alone"))
        assert alone == tokens
    assert [len(tokens) for tokens in together] == [10 + i for i in range(40)]


async def test_a_slow_reader_gets_all_and_holds_nobody_up(client: EngineClient) -> None:
    async with aclosing(client.generate(request("slow", max_tokens=60))) as slow:
        tokens = list((await anext(slow)).token_ids)
        assert len(await collect(client, request("fast", max_tokens=120))) == 120
        pieces = [piece async for piece in slow]
    assert len(pieces) < 5  # what had queued up came in one piece
    for piece in pieces:
        tokens.extend(piece.token_ids)
    assert tokens == await collect(client, request("again", max_tokens=60))


async def test_closing_early_cancels(client: EngineClient) -> None:
    async with aclosing(client.generate(request("early"))) as tokens:
        await anext(tokens)
    async with asyncio.timeout(5):
        while True:
            stats = client.stats
            await asyncio.sleep(0.05)
            if client.stats is not stats and client.stats and client.stats.num_running == 0:
                break
    assert client.stats.num_decode_tokens > 0
    assert client.stats.num_blocks_used == 0


async def test_a_cancelled_task_cancels(client: EngineClient) -> None:
    task = asyncio.create_task(collect(client, request("task")))
    while not client._streams:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client._streams == {}


async def test_refusals_are_the_errors_of_core(client: EngineClient) -> None:
    with pytest.raises(ContextTooLong, match="1024"):
        await collect(client, request("long", [1] * CONTEXT))
    with pytest.raises(InvalidRequest, match="token id 300"):
        await collect(client, request("vocabulary", [300]))
    unknown = msgspec.structs.replace(request("adapter"), adapter="a@7")
    with pytest.raises(ModelNotFound, match="'a@7' is not loaded"):
        await collect(client, unknown)
    async with aclosing(client.generate(request("twice"))) as first:
        await anext(first)
        with pytest.raises(InvalidRequest, match="'twice' is running already"):
            await collect(client, request("twice"))
        assert (await anext(first)).token_ids


async def test_a_full_queue_is_overloaded(client: EngineClient) -> None:
    asked = [collect(client, request(f"q{i}", max_tokens=100)) for i in range(80)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    refused = [r for r in results if isinstance(r, Overloaded)]
    assert len(refused) == 80 - 16 - 48
    assert all(len(r) == 100 for r in results if not isinstance(r, BaseException))


async def test_adapter_commands(client: EngineClient, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"adapter_config\.json"):
        await client.load_adapter("a@1", tmp_path)
    with pytest.raises(ConfigError, match="not loaded"):
        await client.unload_adapter("a@1")


def save_adapter(folder: Path, seed: int) -> Path:
    """Write a PEFT LoRA folder for the tiny model, strong enough to change every token."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, 64, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(32, 4, generator=generator)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"]}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


async def test_adapters_come_and_go_under_running_requests(
    client: EngineClient, tmp_path: Path
) -> None:
    old, new = (save_adapter(tmp_path / str(seed), seed) for seed in (1, 2))
    base = await collect(client, request("base", max_tokens=300))
    await client.load_adapter("a@1", old)
    asked = msgspec.structs.replace(request("a", max_tokens=300), adapter="a@1")
    async with aclosing(client.generate(asked)) as stream:
        tokens = list((await anext(stream)).token_ids)
        await client.load_adapter("a@2", new)
        assert await client.unload_adapter("a@1") == {"num_sequences": 1}
        with pytest.raises(ModelNotFound, match=r"'a@1' is not loaded; loaded: a@2"):
            await collect(client, msgspec.structs.replace(asked, request_id="late"))
        async for piece in stream:
            tokens.extend(piece.token_ids)
    after = await collect(client, msgspec.structs.replace(asked, request_id="b", adapter="a@2"))
    assert await client.unload_adapter("a@2") == {"num_sequences": 0}
    assert len(tokens) == 300
    await client.load_adapter("a@3", old)  # the same weights: what "a" got to its end
    again = await collect(client, msgspec.structs.replace(asked, request_id="c", adapter="a@3"))
    assert again == tokens
    assert len({tuple(tokens), tuple(after), tuple(base)}) == 3
    assert await collect(client, request("base", max_tokens=300)) == base


async def test_stats_come_while_idle_too(client: EngineClient) -> None:
    await asyncio.sleep(1.3)
    stats = client.stats
    await asyncio.sleep(1.3)
    assert client.stats is not stats
    assert client.stats is not None
    assert client.stats.rss_bytes > 10_000_000


# ---- ends


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_dead_or_silent_engine_fails_its_streams(
    how: str, model_folder: Path, tmp_path: Path
) -> None:
    exits: list[str] = []
    client = await EngineClient.start(
        make_config(model_folder), tmp_path, on_exit=exits.append, heartbeat_timeout_s=1.5
    )
    streams = [client.generate(request(f"r{i}")) for i in range(5)]
    for stream in streams:
        await anext(stream)
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how]
    os.kill(client.ready.pid, number)
    started = time.monotonic()
    for stream in streams:
        with pytest.raises(Unavailable, match="ended with status"):
            async for _ in stream:
                pass
    assert time.monotonic() - started < (4.0 if how == "stop" else 1.0)
    await asyncio.sleep(0)
    assert len(exits) == 1
    assert not client.is_alive
    with pytest.raises(Unavailable):
        await collect(client, request("late"))
    with pytest.raises(Unavailable):
        await client.load_adapter("a@1", "x")
    assert list(tmp_path.iterdir()) == []
    await client.close()
    await client.close()


async def test_closing_ends_streams_and_process(model_folder: Path, tmp_path: Path) -> None:
    exits: list[str] = []
    client = await EngineClient.start(make_config(model_folder), tmp_path, on_exit=exits.append)
    stream = client.generate(request("r"))
    await anext(stream)
    started = time.monotonic()
    await client.close()
    assert time.monotonic() - started < 3.0
    with pytest.raises(Unavailable, match="shutting down"):
        async for _ in stream:
            pass
    assert exits == []
    with pytest.raises(ProcessLookupError):
        os.kill(client.ready.pid, 0)


async def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    run_dir = tmp_path / ("long" * 30)  # longer than a socket's path may be
    with pytest.raises(ModelLoadError, match=str(tmp_path / "none")):
        await EngineClient.start(make_config(tmp_path / "none"), run_dir)
    assert list(run_dir.iterdir()) == []


async def test_giving_up_on_a_start_stops_the_process(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await EngineClient.start(make_config(model_folder), tmp_path)
    assert list(tmp_path.iterdir()) == []


PARENT = """
import asyncio, sys
from pathlib import Path
import msgspec
from quickmatch.engine.client import EngineClient
from quickmatch.engine.config import EngineConfig

async def main():
    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
    client = await EngineClient.start(config, Path(sys.argv[2]))
    print(client.ready.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_engine_does_not_outlive_its_parent(model_folder: Path, tmp_path: Path) -> None:
    config = msgspec.json.encode(make_config(model_folder)).decode()
    command = [sys.executable, "-c", PARENT, config, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    deadline = time.monotonic() + 2.0
    while Path(f"/proc/{pid}/cmdline").exists() and _is_running(pid):
        assert time.monotonic() < deadline, "the engine lives on"
        await asyncio.sleep(0.02)


def _is_running(pid: int) -> bool:
    """A dead process that nobody waited for still has an entry: state Z."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
