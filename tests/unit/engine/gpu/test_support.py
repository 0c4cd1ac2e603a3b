"""Which pass a GPU gets, and what is said where it is not Triton's."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from quickmatch.core.errors import ConfigError
from quickmatch.engine import forward_pass, torch_pass
from quickmatch.engine.forward_pass import PassSize, make_pass
from quickmatch.engine.gpu import support, triton_pass
from quickmatch.engine.gpu.support import why_no_compiler, why_not_fp8, why_not_triton
from quickmatch.engine.quantization.formats import FP8
from tests.unit.engine.test_attention import config_of

CUDA = torch.device("cuda")
SIZE = PassSize(num_blocks=4, block_size=16, max_model_len=64)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that says it has an H100, and what Triton compiles with."""
    monkeypatch.setattr(support, "why_no_compiler", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return monkeypatch


def test_a_cpu_has_no_kernels() -> None:
    assert why_not_triton(torch.device("cpu")) == "the device is cpu"
    assert why_not_fp8(torch.device("cpu")) == "the device is cpu"


def test_a_card_has_what_its_capability_allows(card: pytest.MonkeyPatch) -> None:
    assert why_not_triton(CUDA) is None
    assert why_not_fp8(CUDA) is None
    card.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert why_not_triton(CUDA) is None
    assert why_not_fp8(CUDA) == "its compute capability is 8.6, below 8.9"
    card.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert why_not_triton(CUDA) == "its compute capability is 7.5, below 8.0"


def test_a_missing_triton_and_an_interpreted_one_are_told(card: pytest.MonkeyPatch) -> None:
    card.setenv("TRITON_INTERPRET", "1")
    assert why_not_triton(CUDA) == "TRITON_INTERPRET is set, which is for tests; unset it"
    card.setattr(support, "find_spec", lambda _: None)
    assert "pip install 'quickmatch[gpu]'" in str(why_not_triton(CUDA))


def test_a_card_gets_tritons_pass_or_is_told_why_not(
    card: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []

    def maker(name: str) -> Any:
        return lambda *_args, **_options: made.append(name)

    card.setattr(triton_pass, "TritonPass", maker("triton"))
    card.setattr(torch_pass, "TorchPass", maker("torch"))
    caplog.set_level(logging.INFO, logger=forward_pass.__name__)

    def make() -> None:
        model = config_of(2, 1, 16)
        make_pass(Path("some-model"), model, SIZE, dtype=torch.bfloat16, device=CUDA)

    make()
    assert caplog.messages == ["some-model runs in Triton's kernels"]
    caplog.clear()
    card.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    make()
    assert made == ["triton", "torch"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "compute capability is 7.0" in caplog.text


def test_fp8_is_for_cards_that_have_it() -> None:
    with pytest.raises(ConfigError, match="needs a GPU that has it, and the device is cpu; use"):
        make_pass(
            Path("some-model"),
            config_of(2, 1, 16),
            SIZE,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            form=FP8,
        )


def test_the_engine_does_not_import_triton() -> None:
    code = (
        "import sys, quickmatch.engine.runner, quickmatch.engine.gpu.support; "
        "sys.exit(any(name.startswith('quickmatch.engine.gpu.kernels') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_c_compiler_torchs_pass_runs_and_the_reason_is_told(
    card: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton builds its launcher at the first kernel; that must not end a deployment."""
    made: list[str] = []
    card.setattr(torch_pass, "TorchPass", lambda *_args, **_options: made.append("torch"))
    card.setattr(support, "why_no_compiler", why_no_compiler)
    card.delenv("CC", raising=False)
    card.setattr("shutil.which", lambda _: None)
    make_pass(Path("some-model"), config_of(2, 1, 16), SIZE, dtype=torch.bfloat16, device=CUDA)
    assert made == ["torch"]
    assert "triton finds no C compiler (install gcc" in caplog.text


def test_what_triton_compiles_with_is_looked_for_as_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    assert "which is not there" in str(why_no_compiler())
    monkeypatch.setenv("CC", "")  # Triton would run it
    assert "which is not there" in str(why_no_compiler())
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    assert f"no Python.h in {tmp_path}" in str(why_no_compiler())
    (tmp_path / "Python.h").touch()
    assert why_no_compiler() is None
