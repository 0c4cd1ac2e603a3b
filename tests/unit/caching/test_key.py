"""Everything that changes the answer is in the key, and nothing else."""

from dataclasses import fields, replace
from typing import Any

import pytest

from quickmatch.caching.key import cache_key, is_deterministic
from quickmatch.core.call import Call
from quickmatch.core.grammar import Grammar
from quickmatch.core.sampling import SamplingParams

CALL = Call(
    id="c1",
    endpoint="chat",
    model="tiny",
    messages=({"role": "user", "content": "hi"},),
    sampling=SamplingParams(temperature=0.0),
)
CHANGES: dict[str, Any] = {
    "endpoint": "completion",
    "messages": ({"role": "user", "content": "ho"},),
    "prompt": "hi",
    "sampling": SamplingParams(temperature=0.0, max_tokens=5),
    "n": 2,
    "echo": True,
    "tools": ({"type": "function"},),
    "chat_template_kwargs": {"enable_thinking": False},
    "tenant": "other",
    "isolation_key": "mine",
}
SAME: dict[str, Any] = {"id": "c2", "model": "tiny#tiny", "trace_id": "t", "prediction": "hi"}


def test_every_field_of_a_call_is_decided_on() -> None:
    assert {f.name for f in fields(Call)} == CHANGES.keys() | SAME.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_answer_changes_the_key(name: str) -> None:
    assert cache_key(replace(CALL, **{name: CHANGES[name]}), "v") != cache_key(CALL, "v")


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_the_answer_does_not(name: str) -> None:
    assert cache_key(replace(CALL, **{name: SAME[name]}), "v") == cache_key(CALL, "v")


def test_weights_are_in_the_key_and_order_of_keys_is_not() -> None:
    turned = replace(CALL, messages=({"content": "hi", "role": "user"},))
    assert cache_key(turned, "v") == cache_key(CALL, "v")
    assert cache_key(CALL, "w") != cache_key(CALL, "v")


@pytest.mark.parametrize("name", [f.name for f in fields(SamplingParams)])
def test_every_sampling_field_is_in_the_key(name: str) -> None:
    values = {
        "logit_bias": {1: 2.0},
        "stop": ("x",),
        "stop_token_ids": (3,),
        "ignore_eos": True,
        "temperature": 0.5,
        "grammar": Grammar("regex", "a+"),
    }
    changed = replace(CALL.sampling, **{name: values.get(name, 0.75 if "p" in name else 7)})  # type: ignore[arg-type]
    assert cache_key(replace(CALL, sampling=changed), "v") != cache_key(CALL, "v")


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(), False),
        (SamplingParams(temperature=0.0), True),
        (SamplingParams(top_k=1), True),
        (SamplingParams(seed=0), True),
    ],
)
def test_is_deterministic(sampling: SamplingParams, expected: bool) -> None:
    assert is_deterministic(sampling) is expected


def test_grammars_are_told_apart() -> None:
    def key(grammar: Grammar) -> str:
        return cache_key(replace(CALL, sampling=replace(CALL.sampling, grammar=grammar)), "v")

    kinds = [Grammar("regex", "a"), Grammar("regex", "b"), Grammar("choice", "a")]
    assert len({key(grammar) for grammar in kinds}) == 3
