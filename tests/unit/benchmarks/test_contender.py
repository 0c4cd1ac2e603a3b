"""The pipe to a worker: replies, errors, silence and death. The worker is a few lines here."""

import json
import sys
from pathlib import Path

import pytest

import benchmarks.contender as contender_module
from benchmarks.contender import Contender, ContenderFailed, ContenderSpec, start_all
from benchmarks.peers import Environment, PeerUnavailable
from benchmarks.workers.protocol import answer

_WORKER = """
from benchmarks.workers.protocol import serve

class Echo:
    def load(self, model, options):
        print("chatter on stdout")
        if options.get("fail"):
            raise ValueError("no such model")
        return {"model": model}

    def generate(self, prompts, max_tokens):
        if max_tokens == 0:
            raise SystemExit
        return [prompt[:1] * max_tokens for prompt in prompts]

serve(Echo)
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A spec whose worker is the text above, run by this Python."""
    package = tmp_path / "benchmarks" / "workers"
    package.mkdir(parents=True)
    source = Path(contender_module.__file__).parent
    for folder, name in ((source, "__init__.py"), (source / "workers", "__init__.py")):
        (tmp_path / folder.relative_to(source.parent) / name).write_text("")
    protocol = (source / "workers" / "protocol.py").read_text(encoding="utf-8")
    (package / "protocol.py").write_text(protocol, encoding="utf-8")
    (package / "echo.py").write_text(_WORKER, encoding="utf-8")
    monkeypatch.setattr(contender_module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(contender_module, "LOGS", tmp_path / "logs")
    return ContenderSpec(name="echo", module="echo")


def test_load_and_generate_survive_what_a_library_prints(spec, tmp_path):
    with Contender(spec) as contender:
        assert contender.load(tmp_path) >= 0.0
        assert contender.info == {"model": str(tmp_path)}
        assert contender.generate([[1, 2], [3]], 4) >= 0.0


def test_a_worker_that_dies_is_an_error_not_a_hang(spec, tmp_path):
    with Contender(spec) as contender:
        contender.load(tmp_path)
        with pytest.raises(ContenderFailed, match=r"the process ended; see logs/echo\.log"):
            contender.generate([[1]], 0)


def test_start_all_reports_missing_peers_and_raises_for_the_required_one(spec, tmp_path, capsys):
    broken = ContenderSpec(name="broken", module="echo", options={"fail": True})
    running, missing = start_all([spec, broken], tmp_path, required="echo")
    running["echo"].close()
    assert list(running) == ["echo"]
    assert missing == {"broken": "broken: ValueError: no such model"}
    with pytest.raises(ContenderFailed, match="no such model"):
        start_all([broken], tmp_path, required="broken")
    capsys.readouterr()


def test_a_worker_that_gives_too_few_tokens_is_refused():
    class Short:  # answers one token, whatever was asked
        def generate(self, prompts, _max_tokens):
            return [[1] for _ in prompts]

    reply = answer(Short(), {"op": "generate", "prompts": [[1]], "max_tokens": 3})
    assert reply["ok"] is False
    assert "asked for 3 tokens" in reply["error"]


def test_an_environment_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.ENVIRONMENTS", tmp_path)
    monkeypatch.setattr("benchmarks.peers.sys.executable", "/nonexistent/python")
    environment = Environment("peer", (("install", "x"),))
    with pytest.raises(PeerUnavailable, match="nonexistent"):
        environment.ensure()
    assert not environment.is_complete


def test_an_environment_is_reused_only_for_the_same_commands(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.ENVIRONMENTS", tmp_path)
    (tmp_path / "peer").mkdir()
    stamp = json.dumps([["install", "x"]])
    (tmp_path / "peer" / "installed.json").write_text(stamp, encoding="utf-8")
    assert Environment("peer", (("install", "x"),)).is_complete
    assert not Environment("peer", (("install", "y"),)).is_complete
    assert str(Environment("peer", ()).python).endswith("peer/bin/python")
    assert sys.executable  # untouched
