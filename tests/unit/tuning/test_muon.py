import pytest
import torch

from quickmatch.tuning import muon
from quickmatch.tuning.muon import Muon, orthogonal


def moved(optimizer: torch.optim.Optimizer, matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(5)
    for step in range(4):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=dice)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.step()
    return [m.detach() for m in matrices]


def matrices() -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    shapes = ((24, 8), (8, 24), (16, 16))
    return [torch.randn(shape, generator=dice).requires_grad_() for shape in shapes]


def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Guards: a rate, a momentum or a shape that is taken otherwise than published.
    theirs, mine = matrices(), matrices()
    wanted = moved(torch.optim.Muon(theirs, lr=0.0, weight_decay=0.01), theirs)
    monkeypatch.setattr(muon, "cpu_has", lambda _: True)
    found = moved(Muon(mine, weight_decay=0.01), mine)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_singular_values_become_about_one(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Guards: iterations in float32 that end elsewhere than those in bfloat16.
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for has_bf16 in (True, False):
        monkeypatch.setattr(muon, "cpu_has", lambda _, has=has_bf16: has)
        values = torch.linalg.svdvals(orthogonal(matrix).float())
        assert values.min() > 0.6
        assert values.max() < 1.3
