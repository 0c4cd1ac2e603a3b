"""For all tests: Triton's interpreter, and the instruction sets of the native decoder.

Where there is no GPU to compile for, Triton's kernels are interpreted.

Triton looks at the variable once, when it is imported, and other tests import it by way of their
libraries. So it is set here, before pytest reads any other file of tests, and before it has read
its own arguments. `pytest -m gpu` compiles for the card. Servers that tests start inherit the
variable, and run torch's operations wherever it is set.
"""

import os
import sys
from itertools import pairwise

import pytest

_CHOSEN = [value for name, value in pairwise(sys.argv) if name == "-m"]

if not any("gpu" in marks and "not gpu" not in marks for marks in _CHOSEN):
    os.environ["TRITON_INTERPRET"] = "1"


def _isas() -> list[str]:
    try:
        from quickmatch import _native
    except ImportError:
        return []
    return _native.decoder_isas()


@pytest.fixture(params=_isas() or ["none"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this processor has, in turn; "none" where there is no decoder."""
    name: str = request.param
    if name != "none":
        monkeypatch.setenv("QUICKMATCH_ISA", name)
    return name
