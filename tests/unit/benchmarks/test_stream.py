"""The simulated stream: whole texts, a clock that only known things move."""

import argparse

import pytest

from benchmarks.micro.stream import SHARES, Machine, simulate


@pytest.fixture(scope="module")
def told() -> argparse.Namespace:
    return argparse.Namespace(
        seqs=4, calls=6, rounds=2, past=40, scale=4.0, head=0.95, noise=0.0, seed=7
    )


def test_drafts_are_right_and_pay_where_a_step_is_long(told: argparse.Namespace) -> None:
    found = simulate(argparse.Namespace(**vars(told), arms=["suffix", "head"]))
    assert list(found) == ["plain", "suffix", "head"]
    for name, rounds in found.items():
        assert len(rounds) == 2
        for one in rounds:
            assert sum(one.shares[share] for share in SHARES[:4]) == pytest.approx(1.0)
            assert one.tokens_a_forward >= 1.0
            if name == "plain":
                assert one.tokens_a_forward == 1.0
                assert one.shares["drafting"] == one.shares["telling"] == 0.0
    suffix, plain = found["suffix"][1], found["plain"][1]
    assert suffix.tokens_a_forward > 1.2
    assert suffix.tokens_per_s > plain.tokens_per_s


def test_without_noise_a_computation_takes_its_time() -> None:
    machine = Machine(0.0, seed=1)
    before = machine.ahead_s
    assert machine.spend(2.0) == 2.0
    assert machine.ahead_s == before + 2.0
    assert Machine(0.3, seed=1).spend(2.0) != 2.0
