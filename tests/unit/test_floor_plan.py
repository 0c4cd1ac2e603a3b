"""The floor plan holds: who may import whom, what loads no torch, how fast `--help` answers."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import quickmatch

ROOT = Path(quickmatch.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "store": {"core"},
    "observe": {"core", "store"},
    "engine": {"core"},
    "fleet": {"core", "store", "observe"},
    "caching": {"core", "store"},
    "gateway": {"core", "store", "observe", "caching", "fleet"},
    "tuning": {"core", "store", "observe", "engine"},
    "cli": {"core", "store", "observe", "engine", "fleet", "caching", "gateway", "tuning"},
}
ALSO = {("fleet/embedded", "engine")}  # one backend alone knows the engine


def _files() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] in MAY_IMPORT)


def _imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "quickmatch" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                yield parts[1]


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_floor_plan(path: Path) -> None:
    inside = path.relative_to(ROOT)
    package = inside.parts[0]
    allowed = MAY_IMPORT[package] | {package}
    allowed |= {to for prefix, to in ALSO if inside.as_posix().startswith(prefix)}
    assert set(_imported_packages(path)) <= allowed


def test_every_package_has_a_row() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"base_model"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "module", ["quickmatch.gateway.app", "quickmatch.store.open", "quickmatch.cli.main"]
)
def test_light_packages_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_room_is_overgrown() -> None:
    sizes = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in _files()}
    assert {p: n for p, n in sizes.items() if n > 500} == {}


def test_help_answers_at_once() -> None:
    # Beside what it stands on, and in processor time: a slow or busy machine must not fail it.
    foundations = ("-c", "import pydantic.main, typer.rich_utils")
    own, least = (
        min(_cpu_s(*told) for _ in range(3))
        for told in (("-m", "quickmatch.cli.main", "--help"), foundations)
    )
    assert own < 3 * least


def _cpu_s(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
