"""Serving is light: everything in the gateway's process, its backends too, loads no torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["gateway", "fleet", "fleet.embedded", "caching", "observe"])
def test_no_torch(module: str) -> None:
    code = f"import sys, quickmatch.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
