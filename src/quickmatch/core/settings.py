"""Where a Quickmatch installation keeps its things: one folder, the home.

`QUICKMATCH_HOME` names it; the default is `~/.quickmatch`. The gateway, the command line and the
job processes meet there through the store; nothing else is shared between them.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The folder and what lies in it. Nothing is created until it is asked for."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """Return the home that QUICKMATCH_HOME names, or the default one."""
        return cls(Path(os.environ.get("QUICKMATCH_HOME") or "~/.quickmatch").expanduser())

    @property
    def store_path(self) -> Path:
        """The SQLite file."""
        return self.root / "store.db"

    @property
    def datasets(self) -> Path:
        """Dataset files, one JSONL each."""
        return self._folder("datasets")

    @property
    def models(self) -> Path:
        """Adapters and models that jobs made: `models/NAME/VERSION/`."""
        return self._folder("models")

    @property
    def jobs(self) -> Path:
        """Checkpoints and logs: `jobs/ID/`."""
        return self._folder("jobs")

    @property
    def run(self) -> Path:
        """Sockets and process files of running servers."""
        return self._folder("run")

    def _folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path
