"""Speculation from the command line: settings, heads, and what a deployment shows of it."""

from pathlib import Path
from typing import Any

import pytest

from quickmatch.core.settings import Home
from quickmatch.store.adaptation import Adaptation, AdaptationEvent, HeadAdaptation
from quickmatch.store.documents import Deployment, DraftStatus, Model, ModelKind
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store, require
from tests.e2e.tiny_model import make_model
from tests.unit.cli.conftest import Run

BASE = "quickmatch-base"


@pytest.fixture
def store(home: Home) -> Any:
    opened = open_store(home)
    (home.models / "head" / "2").mkdir(parents=True)  # 1 was deleted
    head = Model(
        id="head", created_at=1.0, model_kind=ModelKind.DRAFT, base_model=BASE, version=3,
        path=str(home.models / "head" / "3"),
    )  # fmt: skip
    opened.insert(head, Deployment(id="live", created_at=1.0, model=BASE, adapters={"bot": 1}))
    yield opened
    opened.close()


def live(store: Store) -> Deployment:
    return require(store, Deployment, "live")


def test_settings_of_a_live_deployment_are_merged_and_taken_back(run: Run, store: Store) -> None:
    ask = ("update", "deployment", "live")
    result = run(*ask, "--set", "speculation.adapt=true", "--set", "speculation.max_depth=4")
    assert result.code == 0
    assert "takes effect with `quickmatch serve`" in result.out
    assert live(store).speculation == {"adapt": True, "max_depth": 4}
    result = run(*ask, "--set", "speculation.max_depth=null", "--set", "trace=true", "-o", "json")
    assert (result.json["speculation"], result.json["trace"]) == ({"adapt": True}, True)
    run(*ask, "--set", "speculation.drafters=suffix,head", "--set", "engine.max_num_seqs=4")
    assert live(store).speculation["drafters"] == "suffix,head"
    assert live(store).engine == {"max_num_seqs": 4}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("speculation.adopt=true", "did you mean speculation.adapt?"),
        ("speculation.max_depth=none", "speculation.max_depth is 'none'"),
        ("speculation.drafters=oracle", "drafters holds 'oracle'"),
        ("speculation.draft_model=nothing-like-it", "no model, folder or hub id"),
        ("speculation.draft_model=head", "of kind draft"),
        ("engine.max_num_seq=4", "did you mean 'max_num_seqs'"),
        ("speculation", "is not KEY=VALUE"),
        ("speculate.adapt=1", "did you mean 'speculation.adapt'"),
        ("kv_cache_dtype=int8", "did you mean 'engine.kv_cache_dtype'"),
        ("trace=2", "set it to true or false"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_written(
    run: Run, store: Store, pair: str, words: str
) -> None:
    before = live(store)
    result = run("update", "deployment", "live", "--set", pair)
    assert result.code == 2
    assert words in result.err
    assert live(store) == before


def test_a_draft_model_folder_is_registered_and_kept_by_name(
    run: Run, store: Store, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "small")
    assert (
        run("update", "deployment", "live", "--set", f"speculation.draft_model={folder}").code == 0
    )
    assert live(store).speculation == {"draft_model": "small"}
    assert require(store, Model, "small").path == str(folder)


def test_a_remote_models_decoding_is_not_ours_to_set(run: Run, store: Store) -> None:
    store.insert(
        Model(id="far", created_at=1.0, model_kind=ModelKind.REMOTE, remote_url="http://x/v1"),
        Deployment(id="far", created_at=1.0, model="far"),
    )
    result = run("update", "deployment", "far", "--set", "speculation.adapt=true")
    assert "remote provider" in result.err
    assert run("update", "deployment", "far", "--set", "trace=true").code == 0


def test_serve_refuses_wrong_settings_before_anything_is_created(run: Run) -> None:
    result = run("serve", "--port", "0", "--set", "speculation.max_dept=4")
    assert result.code == 2
    assert "did you mean speculation.max_depth" in result.err
    assert run("list", "deployments", "-o", "json").json == []
    assert run("serve", "--speculation", "perhaps").code == 2


def test_a_head_is_wanted_by_version_and_taken_off(run: Run, store: Store) -> None:
    result = run("load-draft", "head")
    assert (result.code, live(store).drafts) == (0, {"": "head@3"})
    assert "no server is running" in result.err
    run("load-draft", "head@2", "--deployment", "live", "--adapter", "bot")
    assert live(store).drafts == {"": "head@3", "bot": "head@2"}
    refused = run("delete", "model", "head")
    assert "unload-draft --deployment live" in refused.err
    assert run("unload-draft").code == 0
    assert live(store).drafts == {"bot": "head@2"}
    assert "--adapter bot" in run("delete", "model", "head").err
    assert run("unload-draft", "--deployment", "live", "--adapter", "bot").code == 0
    assert live(store).drafts == {}
    assert run("delete", "model", "head").code == 0


def test_asking_again_takes_a_failure_away(run: Run, store: Store) -> None:
    def fail(document: Deployment) -> None:
        document.drafts = {"": "head@3"}
        document.draft_status = {"": DraftStatus(draft="head@3", state="FAILED", error="x")}

    store.update(Deployment, "live", fail)
    run("load-draft", "head")
    assert live(store).draft_status == {}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("load-draft", "nothing"), "no model named 'nothing'"),
        (("load-draft", BASE), "of kind base, not a draft"),
        (("load-draft", "head@4"), "no version '4'; the newest is 3"),
        (("load-draft", "head@x"), "no version 'x'"),
        (("load-draft", "head@1"), "version 1 of draft 'head' is deleted; take one of 2, 3"),
        (("load-draft", "head", "--adapter", "other"), "first: quickmatch load-lora other"),
        (("load-draft", "head", "--deployment", "nowhere"), "no deployment named 'nowhere'"),
        (("unload-draft",), "on no deployment; give --deployment"),
        (("unload-draft", "--deployment", "live", "--adapter", "bot"), "for adapter 'bot'"),
    ],
)
def test_refusals_of_heads(run: Run, store: Store, args: tuple[str, ...], words: str) -> None:
    result = run(*args)
    assert result.code == 2
    assert words in result.err
    assert live(store).drafts == {}


def test_a_deployment_shows_what_speculation_won_and_how_it_adapts(run: Run, store: Store) -> None:
    report = {
        "num_verified": 30, "num_plain": 10, "num_proposed": 200, "num_accepted": 160,
        "num_emitted": 200, "busy_s": 2.0, "plain_s": 6.0, "index_tokens": 1234,
        "index_bytes": 4096, "drafts": {"": "head@2"}, "num_drifts": 0,
        "sources": {"head": {"num_proposed": 150, "num_accepted": 120},
                    "suffix_global": {"num_proposed": 50, "num_accepted": 40},
                    "draft_model": {"num_proposed": 0, "num_accepted": 0}},
    }  # fmt: skip
    swapped = AdaptationEvent(
        at=1.0, event="swapped", draft="head@2", figures={"swap_s": 0.0031}, text="it drafts"
    )

    def change(d: Deployment) -> None:
        d.engine_info = {"pid": 1, "stats": {"num_steps": 5, "speculation": report}}
        d.drafts = {"": "head@2"}
        ready = {"draft": "head@2", "state": "READY", "load_s": 0.25, "swap_s": 0.0031}
        d.draft_status = {"": DraftStatus(**ready)}
        d.speculation = {"adapt": True}
        heads = {"": HeadAdaptation(since=0.0, num_new=57)}
        d.adaptation = Adaptation(note="switch recording on", heads=heads, events=[swapped])

    store.update(Deployment, "live", change)
    shown = run("get", "deployment", "live").out
    for text in (
        "settings: adapt=True",
        "hit rate: 80.0 %",
        "accepted length: 5.00 tokens a forward",
        "speed-up against plain decoding: 3.00 ×",
        "head 75.0 %, suffix_global 25.0 %",
        "suffix index: 1,234 tokens, 4.0 KiB",
        "head of the base model: head@2 READY, loaded in 0.25 s, swapped in within 3.1 ms",
        "note: switch recording on",
        "the base model: collecting, 57 of 200 new calls",
        "swapped · the base model · head@2 · it drafts · swap_s=0.0031",
    ):
        assert text in shown
    assert "num_verified" not in shown
    assert "draft_model" not in shown  # it has drafted nothing
    told = run("get", "deployment", "live", "-o", "json").json
    assert told["measured"]["speed_up"] == 3.0
    assert told["measured"]["drafters"]["head"] == {
        "num_proposed": 150, "num_accepted": 120, "share": 0.75,
    }  # fmt: skip
    assert told["adaptation"]["events"][0]["event"] == "swapped"


def test_adapters_are_told_apart_the_busiest_first(run: Run, store: Store) -> None:
    def one(num_emitted: int) -> dict[str, int]:
        return {
            "num_verified": 10, "num_proposed": 40, "num_accepted": 10, "num_emitted": num_emitted
        }  # fmt: skip

    adapters = {"": one(20), **{f"a{i}@1": one(100 + i) for i in range(9)}}
    report = {**one(1000), "busy_s": 1.0, "plain_s": 2.0, "sources": {}, "adapters": adapters}

    def change(d: Deployment) -> None:
        d.engine_info = {"pid": 1, "stats": {"speculation": report}}

    store.update(Deployment, "live", change)
    lines = run("get", "deployment", "live").out.splitlines()
    told = [line.strip() for line in lines if "hit rate 25.0 %" in line]
    assert told[0] == "adapter a8@1: hit rate 25.0 %, 10.80 tokens a forward, of 108 tokens"
    assert len(told) == 8
    assert "  and 2 more adapters" in lines
    found = run("get", "deployment", "live", "-o", "json").json["measured"]["adapters"]
    assert found[""] == {"hit_rate": 0.25, "accepted_length": 2.0, "num_emitted": 20}


def test_a_deployment_without_speculation_shows_that(run: Run, store: Store) -> None:
    shown = run("get", "deployment", "live").out
    assert "measured: nothing yet" in shown
    assert "adaptation" not in shown
    store.update(Deployment, "live", lambda d: setattr(d, "speculation", {"wrong": 1, "adapt": 1}))
    assert "settings are wrong: unknown setting" in run("get", "deployment", "live").out
