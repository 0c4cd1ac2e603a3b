"""The command line as a user meets it: a served folder, adapters live, and clear refusals."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quickmatch.engine.fingerprint import FINGERPRINT_FILE
from tests.e2e.conftest import START_S, stop_server, wait_until
from tests.e2e.tiny_model import make_adapter, make_model

SERVE = ("serve", "--port", "0", "--dtype", "float32", "--kv-memory-gb", "0.05")


@dataclass
class Cli:
    """`quickmatch` on a home of its own."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        home = str(self.folder / "home")
        return {**os.environ, "QUICKMATCH_HOME": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": ""}

    def start(self, *args: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            command = [sys.executable, "-m", "quickmatch.cli.main", *args]
            return subprocess.Popen(command, env=self.environment, stderr=file, stdout=file)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quickmatch.cli.main", *args]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=START_S
        )

    def json(self, *args: str) -> Any:
        done = self.run(*args, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refusal(self, *args: str) -> str:
        """Return the one line that a refused command prints."""
        done = self.run(*args)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert "Traceback" not in done.stderr
        return last


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A served tiny model."""
    folder = tmp_path_factory.mktemp("cli")
    make_model(folder / "tiny")
    cli = Cli(folder)
    log = folder / "serve.log"
    process = cli.start(*SERVE, str(folder / "tiny"), log=log)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        return "is ready at" in log.read_text()

    wait_until(is_ready, "a server started by the command line")
    yield cli
    stop_server(process)
    assert "Traceback" not in log.read_text()


def test_an_adapter_goes_live_and_off(cli: Cli) -> None:
    adapter = make_adapter(cli.folder / "red", seed=1)
    ask = ("hello there", "--max-tokens", "8")
    cli.json("create", "model", "red", "--path", str(adapter), "--base-model", "tiny")
    deployment = cli.json("deploy", "red")
    assert deployment["adapter_status"]["red"]["state"] == "READY"

    base = cli.json("chat", "tiny", *ask)["choices"][0]["message"]["content"]
    tuned = cli.json("chat", "red", *ask)["choices"][0]["message"]["content"]
    assert base != tuned
    assert cli.run("chat", "red", *ask).stdout.strip() == tuned.strip()

    assert "quickmatch unload-lora red" in cli.refusal("delete", "model", "red")
    cli.json("unload-lora", "red")
    assert "no model named 'red'" in cli.run("chat", "red", *ask).stderr
    assert cli.json("load-lora", "red", "--deployment", "tiny")["adapters"] == {"red": 1}
    cli.json("unload-lora", "red", "--deployment", "tiny")
    assert cli.json("delete", "model", "red") == {"deleted": ["red"]}


def test_bench_reports_what_a_client_sees(cli: Cli) -> None:
    result = cli.json("bench", "tiny", "--num-requests", "6", "--max-tokens", "4")
    assert (result["num_requests"], result["num_errors"]) == (6, 0)
    assert 6 <= result["completion_tokens"] <= 24
    assert 0 < result["ttft_ms"]["p50"] <= result["latency_ms"]["p95"]


def test_a_second_server_on_the_same_home_is_refused(cli: Cli) -> None:
    assert "already running" in cli.refusal(*SERVE)


def truncate(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def mark_for_another_base(adapter: Path) -> None:
    (adapter / FINGERPRINT_FILE).write_text(json.dumps({"fingerprint": "another"}))


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("cut", truncate, "adapter_model.safetensors"),
        ("stranger", mark_for_another_base, "another"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_harms_nothing(
    cli: Cli, name: str, spoil: Callable[[Path], None], said: str
) -> None:
    adapter = make_adapter(cli.folder / name, seed=2)
    spoil(adapter)
    cli.json("create", "model", name, "--path", str(adapter), "--base-model", "tiny")
    assert said in cli.refusal("deploy", name)
    assert cli.json("chat", "tiny", "still there?", "--max-tokens", "4")["choices"]
    cli.json("unload-lora", name)


@pytest.fixture
def idle(tmp_path: Path) -> Cli:
    """A home with no server."""
    return Cli(tmp_path)


@pytest.mark.parametrize(
    ("missing", "said"), [("config.json", "config.json"), ("model.safetensors", "safetensors")]
)
def test_a_folder_with_a_part_missing(idle: Cli, missing: str, said: str) -> None:
    folder = make_model(idle.folder / "tiny")
    (folder / missing).unlink()
    assert said in idle.refusal(*SERVE, str(folder))
    assert idle.json("list", "deployments") == []


def test_a_truncated_weight_file(idle: Cli) -> None:
    folder = make_model(idle.folder / "tiny")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "model.safetensors" in idle.refusal(*SERVE, str(folder))


def test_an_unsupported_architecture(idle: Cli) -> None:
    folder = make_model(idle.folder / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(config))
    line = idle.refusal(*SERVE, str(folder))
    assert "GPT2LMHeadModel" in line
    assert "LlamaForCausalLM" in line


def test_two_models_named(idle: Cli) -> None:
    line = idle.refusal(*SERVE, "one", "--model", "another")
    assert "'one'" in line
    assert "'another'" in line


def test_a_hub_id_with_no_network(idle: Cli) -> None:
    line = idle.refusal(*SERVE, "--model", "nobody/nothing-of-that-name")
    assert "nobody/nothing-of-that-name" in line
    shutil.rmtree(idle.folder / "home")
