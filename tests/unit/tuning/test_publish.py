"""Versions of a model: where they lie, whoever made the first."""

from pathlib import Path

from quickmatch.core.settings import Home
from quickmatch.store.documents import Job, Model, ModelKind
from quickmatch.store.open import open_store
from quickmatch.store.protocol import require
from quickmatch.tuning.publish import publish_draft


def test_an_imported_version_is_found_once_newer_ones_were_trained(tmp_path: Path) -> None:
    home, imported, made = Home(tmp_path / "home"), tmp_path / "imported", tmp_path / "made"
    store = open_store(home)
    base = Model(id="tiny", created_at=1.0, model_kind=ModelKind.BASE)
    for folder in (imported, made):
        folder.mkdir()
        (folder / "config.json").write_text(folder.name)
    store.insert(
        base,
        Model(id="head", created_at=1.0, model_kind=ModelKind.DRAFT, path=str(imported)),
    )
    for number in (2, 3):
        job = Job(
            id=f"draftj-{number}", created_at=1.0, job_type="draft", base_model="tiny",
            output_model="head",
        )  # fmt: skip
        publish_draft(store, home, job, base, head=made, description="")
    head = require(store, Model, "head")
    texts = [(Path(head.path_of(v)) / "config.json").read_text() for v in (1, 2, 3)]
    assert texts == ["imported", "made", "made"]
    assert head.elsewhere == {1: str(imported)}
    store.close()
