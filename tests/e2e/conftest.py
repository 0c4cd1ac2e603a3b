"""One real server a session: the tiny model, three adapters, an engine process behind uvicorn."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from quickmatch.core.settings import Home
from quickmatch.store.documents import Deployment, DeploymentState, Model, ModelKind
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store, require
from tests.e2e.tiny_model import make_adapter, make_model

ADAPTERS = ("red", "green", "blue")
ENGINE = {"dtype": "float32", "num_threads": 1, "kv_memory_bytes": 64 << 20, "device": "cpu"}
START_S = 120.0  # a busy machine takes long to import torch


@dataclass
class Server:
    """A running server and its store."""

    url: str  # without /v1
    store: Store
    process: subprocess.Popen[bytes]
    folder: Path  # of models and adapters

    def client(self) -> openai.OpenAI:
        """Return the official client, without retries: every failure is seen."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def deployment(self) -> Deployment:
        """Return the deployment's document as it is now."""
        return require(self.store, Deployment, "tiny")

    def engine_pid(self) -> int:
        """Return the engine's process id."""
        return int(self.deployment().engine_info["pid"])

    def want_adapters(self, adapters: dict[str, int]) -> None:
        """Write the desired adapters and wait until they can be asked for."""

        def change(document: Deployment) -> None:
            document.adapters = adapters

        self.store.update(Deployment, "tiny", change)
        wait_until(lambda: _has_adapters(self.deployment(), adapters), f"adapters {adapters}")

    def new_version(self, name: str, path: Path) -> int:
        """Register a new version of an adapter and return its number."""

        def change(document: Model) -> None:
            document.path, document.version = str(path), document.version + 1

        return self.store.update(Model, name, change).version


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    """Poll until `is_so`; fail with `what` otherwise."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def _has_adapters(deployment: Deployment, adapters: dict[str, int]) -> bool:
    status = deployment.adapter_status
    assert not [s.error for n, s in status.items() if s.state == "FAILED" and n in adapters]
    return {n: s.version for n, s in status.items() if s.state == "READY"} == adapters


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(home: Path, url: str) -> subprocess.Popen[bytes]:
    """Start `quickmatch serve` on a home, for what is deployed there, and wait for /health."""
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "quickmatch.cli.main", "serve", "--port", port]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QUICKMATCH_HOME": str(home)}
    process = subprocess.Popen(command, env=environment)

    def is_up() -> bool:
        assert process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_up, "a server that answers")
    return process


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, as a user's Ctrl-C does."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def make_home(folder: Path, adapters: tuple[str, ...]) -> Home:
    """Write a home with the tiny model, its adapters, and a deployment of all of them."""
    home = Home(folder / "home")
    store = open_store(home)
    model = make_model(folder / "tiny")
    store.insert(Model(id="tiny", created_at=1.0, model_kind=ModelKind.BASE, path=str(model)))
    for seed, name in enumerate(adapters, start=1):
        path = make_adapter(folder / name / "1", seed=seed)
        adapter = Model(
            id=name,
            created_at=1.0,
            model_kind=ModelKind.ADAPTER,
            path=str(path),
            base_model="tiny",
        )
        store.insert(adapter)
    document = Deployment(
        id="tiny",
        created_at=1.0,
        model="tiny",
        adapters=dict.fromkeys(adapters, 1),
        engine=dict(ENGINE),
    )
    store.insert(document)
    store.close()
    return home


@contextmanager
def serving(folder: Path, home: Home, adapters: tuple[str, ...]) -> Iterator[Server]:
    """Run a server on a home, from ready to stopped."""
    url = f"http://127.0.0.1:{free_port()}"
    process = start_server(home.root, url)
    store = open_store(home)
    running = Server(url, store, process, folder)

    def is_ready() -> bool:
        document = running.deployment()
        assert document.state != DeploymentState.FAILED, document.error
        is_ours = document.server_pid == process.pid and document.state == DeploymentState.READY
        return is_ours and _has_adapters(document, dict.fromkeys(adapters, 1))

    try:
        wait_until(is_ready, "a ready deployment")
        yield running
    finally:
        if process.poll() is None:
            stop_server(process)
        store.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("e2e")
    with serving(folder, make_home(folder, ADAPTERS), ADAPTERS) as running:
        yield running
