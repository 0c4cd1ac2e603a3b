"""Correctness on the card, before anything is timed: the tests that are marked for it.

They hold every kernel against its reference, and greedy texts of small random models against
transformers' and peft's. A wrong kernel may be as quick as it likes.
"""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.provenance import REPOSITORY

_TESTS = ("tests/unit/engine/gpu", "tests/parity/test_triton_pass.py")
_SHOWN_CHARACTERS = 4000


def run_tests(folder: Path) -> int:
    """Run them; return how many passed. Raises RuntimeError with pytest's words if one fails.

    folder: where pytest's report is written.
    """
    report = folder / "gpu-tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", *_TESTS]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-_SHOWN_CHARACTERS:]
        raise RuntimeError(f"tests fail on this card, so that nothing was measured:\n{said}")
    return num_passed(report)


def num_passed(report: Path) -> int:
    """Return the number of tests that a JUnit report says passed."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        raise RuntimeError(f"{report} holds no test suite; look at pytest's own output")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
