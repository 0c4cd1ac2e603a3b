"""Opening: new homes, old files, newer files, other programs' files."""

import sqlite3
import threading

import pytest

from quickmatch.core.errors import StoreError
from quickmatch.core.settings import Home
from quickmatch.core.shipped import SHIPPED_MODEL
from quickmatch.store import migrations
from quickmatch.store.documents import Job, Model
from quickmatch.store.open import open_store
from quickmatch.store.sqlite import SqliteStore


def execute(path, sql, *values):
    connection = sqlite3.connect(path)
    with connection:
        rows = connection.execute(sql, values).fetchall()
    connection.close()
    return rows


def test_a_new_home_knows_the_shipped_model_once(tmp_path):
    home = Home(tmp_path / "new" / "home")
    for _ in range(2):
        store = open_store(home)
        assert [m.id for m in store.find(Model)] == [SHIPPED_MODEL]
        assert store.get(Model, SHIPPED_MODEL).revision == 1
        store.close()


def test_many_may_open_a_new_home_at_once(tmp_path):
    home, failures = Home(tmp_path), []

    def work():
        try:
            open_store(home).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert execute(home.store_path, "SELECT version, name FROM migrations") == [
        (1, "m001_documents")
    ]


def test_a_newer_file_is_refused(tmp_path):
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    execute(path, "INSERT INTO migrations VALUES (99, 'm099', 0)")
    with pytest.raises(StoreError, match=r"has schema 99, this Quickmatch knows .* upgrade"):
        SqliteStore(path)


def test_another_programs_file_is_refused_and_untouched(tmp_path):
    path = tmp_path / "store.db"
    execute(path, "CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(StoreError, match=r"another program's SQLite file .*'bookmarks'"):
        SqliteStore(path)
    assert execute(path, "SELECT name FROM sqlite_master") == [("bookmarks",)]


def test_an_older_file_is_brought_up(tmp_path, monkeypatch):
    path = tmp_path / "store.db"
    SqliteStore(path).close()

    def m002_note(connection):
        connection.execute("CREATE TABLE note (text TEXT)")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m002_note))
    SqliteStore(path).close()
    assert execute(path, "SELECT version, name FROM migrations ORDER BY version")[1] == (
        2, "m002_note",
    )  # fmt: skip
    assert execute(path, "SELECT count(*) FROM note") == [(0,)]


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "store.db"
    SqliteStore(path).close()

    def m002_breaks(connection):
        connection.execute("CREATE TABLE half (x)")
        connection.execute("SELECT x FROM nowhere")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m002_breaks))
        with pytest.raises(StoreError, match="no such table"):
            SqliteStore(path)
    SqliteStore(path).close()
    assert execute(path, "SELECT name FROM sqlite_master WHERE name = 'half'") == []


def test_a_lost_index_is_made_again(tmp_path):
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    execute(path, "DROP INDEX job_by_state")
    SqliteStore(path).close()
    assert execute(path, "SELECT 1 FROM sqlite_master WHERE name = 'job_by_state'") == [(1,)]
    assert "state" in Job.indexed


def test_a_home_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot make the home folder"):
        open_store(Home(tmp_path / "file" / "home"))
