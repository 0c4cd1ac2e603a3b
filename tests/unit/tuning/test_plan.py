"""Schedules: plain arithmetic."""

import pytest

from quickmatch.core.errors import ConfigError
from quickmatch.tuning.batches import epoch_batches
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.settings import SftSettings, auto_learning_rate


def plan(num_rows=100, num_eval_rows=10, rate=1.0, **settings):
    return Plan.of(SftSettings.parse(settings), num_rows, num_eval_rows, rate)


def test_steps():
    assert plan(epochs=3, batch_size=8).total_steps == 3 * 13
    assert plan(batch_size=8, gradient_accumulation_steps=4).total_steps == 4
    assert plan(num_rows=1).total_steps == 1


def test_ten_percent_warm_up_then_cosine_to_zero():
    made = plan(num_rows=800, batch_size=8)
    assert (made.total_steps, made.warmup_steps) == (100, 10)
    rates = [made.rate_at(s) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == pytest.approx(1.0)
    assert made.rate_at(55) == pytest.approx(0.5)
    assert rates[-1] < 0.001


def test_no_warm_up_and_nothing_but_warm_up():
    assert plan(learning_rate_warmup_steps=0).rate_at(0) == 1.0
    short = plan(num_rows=8, learning_rate_warmup_steps=50)
    assert (short.warmup_steps, short.rate_at(0)) == (1, 1.0)


def test_evaluations_cost_about_a_tenth():
    assert plan(num_rows=8000, num_eval_rows=100).eval_every == 100  # ten a run
    assert plan(num_rows=80, num_eval_rows=80).eval_every == 10  # once, at the end
    assert plan(eval_every=3).is_eval_step(3)
    assert not plan(eval_every=3).is_eval_step(4)
    assert plan(eval_every=3).is_eval_step(13)  # the last


def test_each_row_once_an_epoch_and_the_same_order_for_a_seed():
    lengths = [(7 * i) % 90 for i in range(1001)]
    batches = epoch_batches(lengths, 8, seed=1, epoch=0)
    assert sorted(i for b in batches for i in b) == list(range(1001))
    assert batches == epoch_batches(lengths, 8, seed=1, epoch=0)
    assert batches != epoch_batches(lengths, 8, seed=1, epoch=1)
    assert batches != epoch_batches(lengths, 8, seed=2, epoch=0)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.1 * sum(lengths)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"lora_rang": 8}, "unknown setting 'lora_rang'; did you mean 'lora_rank'"),
        ({"lora_rank": 0}, "lora_rank is 0: input should be greater than or equal to 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"epochs": "many"}, "epochs is 'many'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
    ],
)
def test_wrong_settings(values, reason):
    with pytest.raises(ConfigError, match=reason):
        SftSettings.parse(values)


def test_settings_survive_json():
    settings = SftSettings.parse({"target_modules": ["q_proj"], "learning_rate": 0.001})
    assert SftSettings.parse(settings.model_dump(mode="json")) == settings
    assert settings.alpha == 16.0


def test_learning_rate_falls_with_size():
    rates = [auto_learning_rate(n)[0] for n in (5e6, 5e8, 2e9, 7e9)]
    assert rates == sorted(rates, reverse=True)
