"""Run verbs in this process, on a home of the test's own."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quickmatch.cli.main import main
from quickmatch.core.settings import Home

Run = Callable[..., "Result"]


class Result:
    """What a verb printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("QUICKMATCH_HOME", str(tmp_path / "home"))
    return Home.from_environment()


@pytest.fixture
def run(
    home: Home,  # noqa: ARG001 - sets QUICKMATCH_HOME
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    def call(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["quickmatch", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return call
