"""A checkpoint comes back as it was, and one that does not fit on the disk leaves the last."""

import contextlib
import io

import pytest
import torch

from quickmatch.tuning import checkpoint
from quickmatch.tuning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def a_checkpoint(step):
    weights = {"w": torch.full((1000,), float(step))}
    return Checkpoint(step, "run", weights, {"lr": 0.5}, torch.get_rng_state())


def test_what_was_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path, a_checkpoint(3))
    found = load_checkpoint(tmp_path, "run")
    assert (found.step, found.optimizer) == (3, {"lr": 0.5})
    assert torch.equal(found.parameters["w"], torch.full((1000,), 3.0))


def test_it_goes_to_the_disk_tensor_by_tensor(tmp_path, monkeypatch):
    """A head's is some gigabytes, which must not stand in memory a second time."""
    sizes = []

    class Noted(io.BytesIO):
        def write(self, content):
            sizes.append(len(content))
            return super().write(content)

    saved = a_checkpoint(1)
    saved.parameters = {str(i): torch.zeros(10_000) for i in range(8)}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replacing", lambda _: contextlib.nullcontext(Noted()))
        save_checkpoint(tmp_path, saved)
    assert max(sizes) <= 4 * 10_000 < sum(sizes) / 4


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    """torch answers with an error of its own, of positions in a file."""

    class Full(io.BytesIO):
        def write(self, content):
            if self.tell() + len(content) > 5000:  # amid the tensors
                raise OSError(28, "No space left on device")
            return super().write(content)

    save_checkpoint(tmp_path, a_checkpoint(1))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replacing", lambda _: contextlib.nullcontext(Full()))
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, a_checkpoint(2))
    assert load_checkpoint(tmp_path, "run").step == 1
