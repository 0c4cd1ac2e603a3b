"""The verbs of drafts and of the audit log: create, list, export, import, verify."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quickmatch.core.settings import Home
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.observe import audit
from quickmatch.store.documents import AuditRecord, Deployment, Model
from quickmatch.store.open import open_store
from tests.unit.cli.conftest import Run

PROMPTS = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(10)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return file


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of random numbers for the shipped model, as another trainer would leave it."""
    import torch

    from quickmatch.engine.model_config import read_model_config
    from quickmatch.engine.speculation.head_config import new_head_config
    from quickmatch.engine.speculation.head_folder import write_head
    from tests.unit.engine.speculation.random_head import random_head

    target = read_model_config(Path(model_source(SHIPPED_MODEL)))
    config = new_head_config(target, draft_vocab_size=64)
    tensors = {
        name: tensor if name in ("d2t", "t2d") else tensor.to(torch.bfloat16)
        for name, tensor in random_head(config).items()
    }
    folder = tmp_path_factory.mktemp("heads") / "head"
    write_head(
        folder, config, tensors, format="speculators",
        target_name="shipped", target_architecture=target.architecture,
    )  # fmt: skip
    return folder


def test_a_job_is_created_from_a_file_of_prompts(run: Run, home: Home, prompts: Path) -> None:
    given = ["--dataset", str(prompts), "--no-start", "--epochs", "2", "--force"]
    job = run("create", "draft-job", "--output-draft", "head", *given, "-o", "json").json
    assert (job["job_type"], job["base_model"], job["file"]) == (
        "draft", SHIPPED_MODEL, "prompts.jsonl",
    )  # fmt: skip
    assert (job["settings"]["epochs"], job["settings"]["force"]) == (2, True)
    copied = Path(job["data_path"]) / "rows.jsonl"
    assert len(copied.read_text().splitlines()) == 10
    listed = run("list", "draft-jobs")
    assert "prompts.jsonl" in listed.out
    assert "draft" in listed.out
    # Cancelled before it ran: the copied rows go, and the log says so.
    run("cancel", job["id"])
    assert not copied.exists()
    records = run("get", "audit", "-o", "json").json
    assert [(r["action"], r["subject"]) for r in records] == [("draft-data-deleted", job["id"])]
    assert records[0]["detail"]["files"][0]["num_lines"] == 10
    assert home.jobs.exists()


def test_a_job_is_for_the_deployment_that_is_named(run: Run, home: Home, prompts: Path) -> None:
    given = ["--file", str(prompts), "--no-start", "--model", SHIPPED_MODEL, "-o", "json"]
    run("list", "models")  # puts the shipped one into a new home
    store = open_store(home)
    for name, engine in (("a", {"quantization": "int8"}), ("b", {"max_lora_rank": 128})):
        store.insert(Deployment(id=name, created_at=1.0, model=SHIPPED_MODEL, engine=engine))
    store.close()
    job = run("create", "draft-job", "--output-draft", "x", "--deployment", "b", *given).json
    assert (job["deployment"], job["engine"]) == ("b", {"max_lora_rank": 128})
    refused = run("create", "draft-job", "--output-draft", "y", *given)
    assert (refused.code, "say with --deployment for which" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((), "give one of dataset, file and trace_filter"),
        (("--dataset", "nothing"), "no dataset named 'nothing'"),
        (("--filter", "status=200"), "give --from-traces with it"),
        (("--from-traces", "--model", "nothing"), "no model named 'nothing'"),
        (("--from-traces", "--unroll-steps", "3", "--warm-start-from", SHIPPED_MODEL),
         "is a model of kind base, not a draft"),
        (("--from-traces", "--holdout", "1.5"), "holdout is 1.5: input should be less than 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    run: Run, given: tuple[str, ...], reason: str
) -> None:
    result = run("create", "draft-job", "--output-draft", "head", *given)
    assert result.code == 2
    assert reason in result.err
    assert len(result.err.splitlines()) == 1
    assert run("list", "jobs").out.strip() == "no jobs"


def test_a_wrong_line_of_a_file_is_named(run: Run, prompts: Path) -> None:
    with prompts.open("a") as file:
        file.write('{"messages": [{"role": "system", "content": "be brief"}]}\n')
    result = run("create", "draft-job", "--output-draft", "head", "--file", str(prompts))
    assert result.code == 2
    assert "prompts.jsonl line 11: the last message's role is 'system'" in result.err


def test_a_head_made_elsewhere_comes_in_and_goes_out(run: Run, head: Path, tmp_path: Path) -> None:
    import torch

    from quickmatch.engine.speculation.head_folder import read_head

    where = ["--path", str(head), "--base-model", SHIPPED_MODEL]  # its kind is seen from its files
    made = run("create", "model", "guest", *where, "-o", "json").json
    assert (made["model_kind"], made["base_model"], made["version"]) == ("draft", SHIPPED_MODEL, 1)
    assert Path(made["path"]).is_dir()
    assert [m["id"] for m in run("get", "drafts", "-o", "json").json] == ["guest"]
    assert len(run("list", "models", "-o", "json").json) == 2
    expected, tensors = read_head(head)
    for format in ("eagle3", "speculators"):
        out = tmp_path / format
        result = run("export", "draft", "guest@1", "--format", format, "--out", str(out))
        assert result.code == 0, result.err
        config, exported = read_head(out)
        assert config == expected
        assert all(torch.equal(exported[name], tensor) for name, tensor in tensors.items())
    again = run("export", "draft", "guest", "--out", str(tmp_path / "eagle3"))
    assert (again.code, "is not empty" in again.err) == (2, True)
    assert "no version '7'" in run("export", "draft", "guest@7", "--out", "x").err
    assert "not a draft" in run("export", "draft", SHIPPED_MODEL, "--out", "x").err
    assert run("delete", "draft", "guest").code == 0
    assert not Path(made["path"]).exists()


def test_a_head_comes_in_from_the_hub(
    run: Run, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import torch
    from huggingface_hub.errors import LocalEntryNotFoundError
    from safetensors.torch import load_file

    published = Path(shutil.copytree(head, tmp_path / "snapshot"))
    torch.save(load_file(published / "model.safetensors"), published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    fetched: list[tuple[str, Any]] = []

    def download(hub_id: str, *, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        fetched.append((hub_id, options["allow_patterns"]))
        return str(published)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    where = ["--path", "someone/a-head", "--base-model", SHIPPED_MODEL]
    made = run("create", "model", "guest", *where, "-o", "json").json
    assert (made["model_kind"], made["base_model"]) == ("draft", SHIPPED_MODEL)
    assert (Path(made["path"]) / "pytorch_model.bin").is_file()
    ((hub_id, files),) = fetched
    assert (hub_id, "pytorch_model.bin" in files) == ("someone/a-head", True)
    (published / "pytorch_model.bin").unlink()
    refused = run("create", "model", "other", *where)
    assert (refused.code, "holds neither an adapter nor a head" in refused.err) == (2, True)


def test_a_head_that_does_not_fit_is_refused(run: Run, head: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for file in head.iterdir():
        (wrong / file.name).write_bytes(file.read_bytes())
    config = json.loads((wrong / "config.json").read_text())
    config["transformer_layer_config"]["hidden_size"] = 512
    (wrong / "config.json").write_text(json.dumps(config))
    where = ["--path", str(wrong), "--kind", "draft", "--base-model", SHIPPED_MODEL]
    result = run("create", "model", "guest", *where)
    assert result.code == 2
    assert "do not belong together" in result.err
    assert run("list", "drafts").out.strip() == "no drafts"


def test_the_audit_log_is_listed_and_checked(run: Run, home: Home) -> None:
    assert "whole: 0 records" in run("verify", "audit").out
    store = open_store(home)
    for number in range(3):
        audit.append(store, actor="user me", action="draft-data-deleted", subject=f"j{number}",
                     detail={})  # fmt: skip
    assert "draft-data-deleted" in run("list", "audit").out
    checked = run("verify", "audit", "-o", "json").json
    assert (checked["holds"], checked["num_records"]) == (True, 3)
    store.update(AuditRecord, "0000000002", lambda r: setattr(r, "subject", "another"))
    result = run("verify", "audit")
    assert (result.code, "record 2 was changed" in result.out) == (1, True)
    refused = run("delete", "audit", "0000000002")
    assert (refused.code, "audit records stay" in refused.err) == (2, True)
    assert store.count(Model) == 1
    store.close()
