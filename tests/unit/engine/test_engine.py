from typing import Any

import pytest

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.wire import Generate, Tokens
from tests.unit.engine.fake_runner import FakeRunner


def make_engine(runner: FakeRunner | None = None, **config: Any) -> Engine:
    return Engine(runner or FakeRunner(), EngineConfig(model="fake", **config))


def request(name: str, prompt: list[int], adapter: str | None = None, **sampling: Any) -> Generate:
    params = SamplingParams(**{"seed": 7, **sampling})
    return Generate(request_id=name, prompt_token_ids=prompt, sampling=params, adapter=adapter)


def finish(engine: Engine) -> dict[str, tuple[list[int], str]]:
    """Run until nothing is left; return tokens and finish reason by request."""
    tokens: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    while engine.has_work:
        for event in engine.step():
            assert event.request_id not in reasons, "tokens after the end"
            tokens.setdefault(event.request_id, []).extend(event.token_ids)
            if event.finish_reason is not None:
                reasons[event.request_id] = event.finish_reason
        engine.scheduler.check_integrity()
    return {name: (tokens[name], reasons[name]) for name in tokens}


def test_a_request_ends_as_it_does_alone() -> None:
    runner = FakeRunner()
    engine = make_engine(runner, max_num_batched_tokens=5)
    requests = [request(f"r{i}", list(range(1, 4 + 3 * i)), max_tokens=20) for i in range(6)]
    for each in requests:
        assert engine.add(each) is None
    results = finish(engine)
    for each in requests:
        assert results[each.request_id] == runner.alone(each.prompt_token_ids, each.sampling)


def test_stops_at_eos_unless_told_to_ignore_it() -> None:
    runner = FakeRunner(vocab_size=5)
    engine = make_engine(runner)
    engine.add(request("eos", [1, 2]))
    engine.add(request("ignored", [1, 2], ignore_eos=True, max_tokens=40))
    engine.add(request("min", [1, 2], min_tokens=30, max_tokens=60))
    results = finish(engine)
    assert results["eos"][1] == "stop"
    assert results["eos"][0][-1] == 0
    assert 0 not in results["eos"][0][:-1]
    assert results["ignored"][1] == "length"
    assert len(results["ignored"][0]) == 40
    assert 0 in results["ignored"][0]
    assert len(results["min"][0]) >= 30
    assert 0 not in results["min"][0][:30]


def test_stops_at_a_stop_token_id() -> None:
    runner = FakeRunner(vocab_size=5)
    engine = make_engine(runner)
    engine.add(request("r", [1, 2], ignore_eos=True, stop_token_ids=(3,)))
    tokens, reason = finish(engine)["r"]
    assert (tokens[-1], reason) == (3, "stop")
    assert 3 not in tokens[:-1]


def test_ends_with_length_at_the_end_of_the_context() -> None:
    engine = make_engine(FakeRunner(max_model_len=10))
    engine.add(request("r", [1, 2, 3], ignore_eos=True))
    tokens, reason = finish(engine)["r"]
    assert (len(tokens), reason) == (7, "length")


def test_the_kv_memory_may_hold_less_than_the_context() -> None:
    engine = make_engine(FakeRunner(max_model_len=128, num_blocks=3, block_size=4))
    engine.add(request("fits", [1, 2, 3], ignore_eos=True))
    tokens, reason = finish(engine)["fits"]
    assert (len(tokens), reason) == (9, "length")
    refused = engine.add(request("big", [1] * 12))
    assert refused is not None
    assert refused.error_code == "context_length_exceeded"
    assert refused.error == (
        "the prompt has 12 tokens, but the model's context holds 128 and the KV memory only 12; "
        "shorten the prompt, or serve with a higher kv_memory_fraction"
    )


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (request("r", []), "invalid_request", "prompt is empty"),
        (request("r", [1, 53]), "invalid_request", "token id 53 .* 0 to 52"),
        (request("r", [-1]), "invalid_request", "token id -1"),
        (request("r", [1], logit_bias={99: 1.0}), "invalid_request", "token id 99"),
        (request("r", [1] * 128), "context_length_exceeded", "has 128 tokens, .* holds 128; sho"),
        (
            request("r", [1] * 100, max_tokens=29),
            "context_length_exceeded",
            "has 100 tokens and max_tokens is 29, .* holds 128; .* lower max_tokens",
        ),
        (request("r", [1], adapter="a@1"), "adapter_not_found", "'a@1' is not loaded; none is"),
    ],
)
def test_refuses_what_cannot_be_served(bad: Generate, code: str, words: str) -> None:
    engine = make_engine()
    refused = engine.add(bad)
    assert refused is not None
    assert (refused.finish_reason, refused.error_code) == ("error", code)
    with pytest.raises(ValueError, match=words):
        raise ValueError(refused.error)
    assert not engine.has_work


def test_a_full_queue_refuses_and_a_double_id_too() -> None:
    engine = make_engine(max_num_seqs=1, max_queue_len=1)
    assert engine.add(request("a", [1])) is None
    double = engine.add(request("a", [1]))
    assert double is not None
    assert double.error == "request 'a' is running already"
    assert engine.add(request("b", [1])) is None
    full = engine.add(request("c", [1]))
    assert full is not None
    assert full.error_code == "queue_full"


@pytest.mark.parametrize("num_steps", [0, 1, 2, 4])
def test_cancel_at_any_time(num_steps: int) -> None:
    engine = make_engine(max_num_batched_tokens=4, max_num_seqs=1)
    engine.add(request("a", list(range(1, 10)), ignore_eos=True))
    engine.add(request("b", [1, 2]))
    for _ in range(num_steps):
        engine.step()
    assert engine.cancel("a") == Tokens(request_id="a", token_ids=[], finish_reason="cancel")
    assert engine.cancel("a") is None
    engine.scheduler.check_integrity()
    assert "a" not in finish(engine)
    assert engine.stats().num_blocks_used == 0


def test_preemption_does_not_change_the_output() -> None:
    runner = FakeRunner(num_blocks=10)
    engine = make_engine(runner, enable_prefix_caching=False)
    requests = [
        request(f"r{i}", [i, 2, 3, 4, 5], ignore_eos=True, max_tokens=20) for i in range(1, 6)
    ]
    for each in requests:
        engine.add(each)
    results = finish(engine)
    assert engine.stats().num_preempted > 0
    assert sum(len(b.preempted) for b in runner.batches) == engine.stats().num_preempted
    for each in requests:
        assert results[each.request_id] == runner.alone(each.prompt_token_ids, each.sampling)


def test_unseeded_requests_differ_and_a_seed_repeats() -> None:
    engine = make_engine()
    for name in "ab":
        engine.add(request(name, [1, 2, 3], seed=None, ignore_eos=True, max_tokens=20))
        engine.add(request(name + "seeded", [1, 2, 3], ignore_eos=True, max_tokens=20))
    results = finish(engine)
    assert results["a"] != results["b"]
    assert results["aseeded"] == results["bseeded"]


def test_first_tokens_carry_cached_tokens_and_queue_time() -> None:
    now = [10.0]
    engine = Engine(FakeRunner(), EngineConfig(model="fake"), clock=lambda: now[0])
    engine.add(request("a", list(range(1, 10)), max_tokens=2, ignore_eos=True))
    finish(engine)
    engine.add(request("b", list(range(1, 10)), max_tokens=2, ignore_eos=True))
    now[0] = 12.5
    first, second = engine.step()[0], engine.step()[0]
    assert (first.num_cached_tokens, first.queue_s) == (8, 2.5)
    assert (second.num_cached_tokens, second.queue_s) == (0, 0.0)


def test_prefixes_are_shared_only_under_the_same_isolation_key() -> None:
    engine = make_engine()
    hits = []
    for name, key in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "")):
        params = SamplingParams(seed=1, max_tokens=1)
        engine.add(
            Generate(
                request_id=name,
                prompt_token_ids=list(range(1, 10)),
                sampling=params,
                isolation_key=key,
            )
        )
        hits.append(engine.step()[0].num_cached_tokens)
    assert hits == [0, 0, 8, 0]


def test_logprobs_travel_one_entry_a_token() -> None:
    engine = make_engine()
    engine.add(request("r", [1, 2], logprobs=2))
    event = engine.step()[0]
    assert event.logprobs == [[(event.token_ids[0], -0.5), (0, -1.0), (1, -2.0)]]


# ---- adapters


def test_adapters_and_base_share_a_batch_but_no_prefix() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    assert engine.load_adapter("a@1", "weights-a") == {"row": 0}
    engine.load_adapter("b@1", "weights-b")
    prompt = list(range(1, 10))
    contents = {"base": None, "weights-a": "a@1", "weights-b": "b@1"}
    for repeat in range(2):
        for content, adapter in contents.items():
            engine.add(request(f"{content}{repeat}", prompt, adapter, max_tokens=10))
    results = finish(engine)
    for content in contents:
        expected = runner.alone(
            prompt, request("", prompt, max_tokens=10).sampling, content=content
        )
        assert results[f"{content}0"] == results[f"{content}1"] == expected


def test_an_adapter_goes_when_its_last_request_has_ended() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    engine.load_adapter("a@1", "old")
    engine.add(request("running", [1, 2, 3], "a@1", max_tokens=10, ignore_eos=True))
    engine.step()
    engine.add(request("waiting", [1, 2, 3], "a@1", max_tokens=10, ignore_eos=True))
    engine.load_adapter("a@2", "new")
    assert engine.unload_adapter("a@1") == {"num_sequences": 2}
    refused = engine.add(request("late", [1, 2], "a@1"))
    assert refused is not None
    assert refused.error == "adapter 'a@1' is not loaded; loaded: a@2"
    assert engine.stats().adapters == ["a@2"]
    assert set(runner.loaded) == {"a@1", "a@2"}
    engine.cancel("waiting")
    assert "a@1" in runner.loaded
    result = finish(engine)["running"]
    params = request("", [1], max_tokens=10, ignore_eos=True).sampling
    alone = runner.alone([1, 2, 3], params, content="old")
    assert result == (alone[0][1:], "length")  # the first token came with the step above
    assert set(runner.loaded) == {"a@2"}


def test_a_name_that_is_loaded_again_finds_none_of_the_old_kv() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    prompt = list(range(1, 10))
    for content in ("old", "new"):
        engine.load_adapter("a@1", content)
        each = request("r", prompt, "a@1", max_tokens=10)
        engine.add(each)
        assert finish(engine)["r"] == runner.alone(prompt, each.sampling, content=content)
        assert engine.unload_adapter("a@1") == {"num_sequences": 0}
        assert runner.loaded == {}


def test_adapter_errors_name_the_adapter_and_the_remedy() -> None:
    engine = make_engine()
    with pytest.raises(ConfigError, match="missing does not exist"):
        engine.load_adapter("a@1", "missing")
    with pytest.raises(ConfigError, match="'a@1' is not loaded; none is loaded"):
        engine.unload_adapter("a@1")
    engine.load_adapter("a@1", "x")
    with pytest.raises(ConfigError, match="under a new version"):
        engine.load_adapter("a@1", "x")


def test_more_adapters_than_memory_holds_take_turns() -> None:
    # Guards: an adapter that came back in another row, or whose cached prefix is another's.
    runner = FakeRunner(max_adapters=2, num_blocks=256)
    engine = make_engine(runner)
    names = [f"a@{i}" for i in range(5)]
    for name in names:
        engine.load_adapter(name, f"weights {name}")
    assert engine.stats().adapters == names
    prompt = list(range(1, 10))
    for turn in range(3):
        for name in names if turn % 2 else names[::-1]:
            each = request("r", prompt, name, max_tokens=6)
            assert engine.add(each) is None
            right = runner.alone(prompt, each.sampling, content=f"weights {name}")
            assert finish(engine)["r"] == right
            assert len(runner.loaded) == 2
    engine.unload_adapter("a@0")
    assert engine.stats().adapters == names[1:]


def test_the_adapter_used_longest_ago_makes_room_and_never_one_in_use() -> None:
    runner = FakeRunner(max_adapters=2)
    engine = make_engine(runner)
    for name in "ab":
        engine.load_adapter(name, name)
    engine.add(request("1", [1], "a", max_tokens=4, ignore_eos=True))
    engine.load_adapter("c", "c")
    assert set(runner.loaded) == {"a", "c"}
    engine.add(request("2", [1], "c", max_tokens=4, ignore_eos=True))
    refused = engine.add(request("3", [1], "b"))
    assert refused is not None
    assert refused.error is not None
    assert "all 2 adapters" in refused.error
    finish(engine)
    assert engine.add(request("4", [1], "b", max_tokens=2)) is None
    assert set(runner.loaded) == {"b", "c"}


def test_an_adapter_whose_folder_went_away_fails_its_own_request_only() -> None:
    runner = FakeRunner(max_adapters=1)
    engine = make_engine(runner)
    engine.load_adapter("a", "a")
    engine.load_adapter("b", "b")
    runner.missing.add("a")
    refused = engine.add(request("1", [1], "a"))
    assert refused is not None
    assert refused.error == "a does not exist; check the path"
    assert engine.add(request("2", [1], "b", max_tokens=2)) is None
    assert len(finish(engine)["2"][0]) == 2


def test_stats_count_what_was_done() -> None:
    engine = make_engine()
    engine.add(request("r", [1] * 9, max_tokens=4, ignore_eos=True))
    engine.step()
    stats = engine.stats(step_s=0.25, rss_bytes=7)
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (1, 0, 3)
    finish(engine)
    stats = engine.stats()
    assert (stats.num_prefill_tokens, stats.num_decode_tokens, stats.num_steps) == (9, 3, 4)
    assert (stats.num_running, stats.num_blocks_used) == (0, 0)


def test_failures_tell_every_live_request() -> None:
    engine = make_engine(max_num_seqs=1)
    for name in "ab":
        engine.add(request(name, [1, 2]))
    engine.step()
    failed = engine.failures("broken")
    assert {(f.request_id, f.finish_reason, f.error) for f in failed} == {
        ("a", "error", "broken"),
        ("b", "error", "broken"),
    }
