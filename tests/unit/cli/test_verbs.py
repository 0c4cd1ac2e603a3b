"""The verbs, against a real store, with no server running."""

import json
import shutil
from pathlib import Path

import pytest

from quickmatch.cli import server_lock
from quickmatch.core.errors import Conflict
from quickmatch.core.settings import Home
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from tests.unit.cli.conftest import Run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"question {i}"},
                {"role": "assistant", "content": f"answer {i}"},
            ]
        }
        for i in range(10)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_the_shipped_model_is_there(run: Run) -> None:
    names = [model["id"] for model in run("list", "models", "-o", "json").json]
    assert names == ["quickmatch-base"]


def test_unknown_noun_lists_the_nouns(run: Run) -> None:
    result = run("list", "moodels")
    assert result.code == 2
    assert "model, draft, dataset, job, deployment, trace, audit" in result.err


def test_unknown_name_lists_what_there_is(run: Run) -> None:
    result = run("get", "model", "nope")
    assert (result.code, result.out) == (2, "")
    assert "quickmatch-base" in result.err
    assert len(result.err.splitlines()) == 1


def test_errors_are_json_when_asked(run: Run) -> None:
    result = run("get", "model", "nope", "-o", "json")
    assert result.code == 2
    assert json.loads(result.err)["error"]["code"] == "not_found"


def test_dataset_from_file_and_split(run: Run, rows: Path) -> None:
    made = run("create", "dataset", "qa", str(rows), "--holdout", "0.2", "-o", "json").json
    assert [(d["id"], d["num_rows"]) for d in made] == [("qa", 8), ("qa-holdout", 2)]
    assert "qa-holdout" in run("list", "datasets").out
    assert run("delete", "dataset", "qa", "qa-holdout").code == 0
    assert run("list", "datasets", "-o", "json").json == []


def test_wrong_dataset_line_creates_nothing(run: Run, rows: Path, home: Home) -> None:
    rows.write_text(rows.read_text() + '{"messages": []}\n')
    result = run("create", "dataset", "qa", str(rows))
    assert result.code == 2
    assert "line 11" in result.err
    assert run("list", "datasets", "-o", "json").json == []
    assert list(home.datasets.iterdir()) == []


def test_dataset_needs_one_source(run: Run, rows: Path) -> None:
    assert "either" in run("create", "dataset", "qa").err
    assert "either" in run("create", "dataset", "qa", str(rows), "--from-traces").err


def test_job_on_missing_dataset_is_refused(run: Run) -> None:
    result = run("create", "sftj", "--dataset", "nope", "--output-model", "m")
    assert result.code == 2
    assert "no dataset named 'nope'" in result.err
    assert run("list", "jobs", "-o", "json").json == []


def test_remote_model_deploys_without_a_server(run: Run) -> None:
    url = "http://127.0.0.1:9/v1/"
    assert run("create", "model", "teacher", "--remote-url", url, "--remote-model", "m").code == 0
    result = run("deploy", "teacher", "-o", "json")
    assert result.json["state"] == "PENDING"
    assert "no server is running" in result.err
    assert "first" in run("delete", "model", "teacher").err
    assert run("delete", "deployment", "teacher").code == 0
    assert run("delete", "model", "teacher").code == 0


def test_deploy_of_an_unknown_name(run: Run) -> None:
    result = run("deploy", "nothing-like-it")
    assert result.code == 2
    assert "quickmatch-base" in result.err


def test_two_folders_of_one_name(run: Run, tmp_path: Path) -> None:
    from quickmatch.engine.folder import resolve_model

    shipped = resolve_model(model_source(SHIPPED_MODEL))
    first, second = (str(tmp_path / parent / "twin") for parent in "ab")
    for folder in (first, second):
        shutil.copytree(shipped, folder)
    assert run("deploy", first, "-o", "json").json["model"] == "twin"
    taken = run("deploy", second)
    assert taken.code == 2
    assert f"create model NAME --path {second}" in taken.err
    assert run("deploy", second, "--name", "twin").code == 2
    assert run("deploy", second, "--name", "other", "-o", "json").json["model"] == "other"
    assert run("deploy", second, "--name", "other").code == 0  # the same again
    paths = {m["id"]: m["path"] for m in run("list", "models", "-o", "json").json}
    assert (paths["twin"], paths["other"]) == (first, second)


def test_chat_without_a_server_says_how_to_start_one(run: Run) -> None:
    result = run("chat", "quickmatch-base", "hi")
    assert result.code == 2
    assert "quickmatch serve" in result.err


def test_port_in_use_is_one_clear_line(run: Run) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", "--port", str(taken.getsockname()[1]))
    assert result.code == 2
    assert "choose another --port" in result.err
    assert run("list", "deployments", "-o", "json").json == []


def test_one_server_a_home(home: Home) -> None:
    assert server_lock.running_server(home) is None
    with server_lock.hold(home, "http://127.0.0.1:1/v1"):
        running = server_lock.running_server(home)
        assert running is not None
        assert running.url == "http://127.0.0.1:1/v1"
        with pytest.raises(Conflict, match="already running"), server_lock.hold(home, "other"):
            pass
    assert server_lock.running_server(home) is None


def test_unknown_flag_is_wrong_use(run: Run) -> None:
    assert run("list", "models", "--colour").code == 2
