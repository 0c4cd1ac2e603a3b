"""The store keeps its protocol: atomic, consistent, across threads and processes, and it says
what is wrong when the file or the disk is."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest

from quickmatch.core.errors import Conflict, NotFound, StoreError
from quickmatch.store.documents import Job, JobState, JobStep, Trace
from quickmatch.store.protocol import require
from quickmatch.store.sqlite import SqliteStore, _condition


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def store(path):
    store = SqliteStore(path)
    yield store
    store.close()


def step(number, job="j", **fields):
    return JobStep(
        id=f"{job}/{number:08d}", created_at=float(number), job=job, step=number, **fields
    )


def job(id="j1", **fields):
    defaults = {"created_at": 1.0, "base_model": "b", "dataset": "d", "output_model": "o"}
    return Job(id=id, **(defaults | fields))


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, **options)


def test_insert_get_and_revisions(store):
    one = job()
    store.insert(one)
    assert one.revision == 1
    assert store.get(Job, "j1") == one
    store.put(one)
    assert one.revision == 2
    changed = store.update(Job, "j1", lambda d: setattr(d, "state", JobState.RUNNING))
    assert (changed.revision, changed.state) == (3, JobState.RUNNING)
    assert store.get(Job, "j1") == changed
    assert store.get(Job, "nobody") is None


def test_insert_is_all_or_none(store):
    store.insert(step(2))
    with pytest.raises(Conflict, match="job_step 'j/00000002' exists already"):
        store.insert(step(1), step(2), step(3))
    assert store.count(JobStep) == 1


def test_a_change_that_raises_leaves_the_document(store):
    store.insert(job())

    def refuse(document):
        document.error = "half done"
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.update(Job, "j1", refuse)
    assert store.get(Job, "j1").error == ""
    store.put(job())  # the write lock is free again


def test_update_refuses_a_missing_document_and_a_new_id(store):
    with pytest.raises(NotFound, match="no job named 'j1'"):
        store.update(Job, "j1", lambda _: None)
    store.insert(job())
    with pytest.raises(ValueError, match="renamed"):
        store.update(Job, "j1", lambda d: setattr(d, "id", "j2"))


def test_require_lists_what_there_is(store):
    store.insert(job("a"), job("b"))
    with pytest.raises(NotFound, match="no job named 'c'; there are: a, b"):
        require(store, Job, "c")


def test_delete(store):
    store.insert(step(1), step(2), step(3, job="other"))
    assert store.delete(JobStep, "j/00000001")
    assert not store.delete(JobStep, "j/00000001")
    assert store.delete_many(JobStep, {"job": "j"}) == 1
    assert [d.job for d in store.find(JobStep)] == ["other"]


def test_order_limit_and_ties_by_id(store):
    store.insert(*(step(n, loss=float(n % 2)) for n in (3, 1, 2, 4)))
    assert [d.step for d in store.find(JobStep)] == [1, 2, 3, 4]
    assert [d.step for d in store.find(JobStep, descending=True, limit=2)] == [4, 3]
    assert [d.step for d in store.find(JobStep, order_by="loss")] == [2, 4, 1, 3]
    assert list(store.find(JobStep, limit=0)) == []


def test_a_large_find_is_a_snapshot_and_may_be_written_under(store):
    store.insert(*(step(n) for n in range(1000)))
    seen = 0
    for document in store.find(JobStep):
        store.delete(JobStep, document.id)
        store.put(step(10_000 + document.step))
        seen += 1
    assert seen == 1000
    assert store.count(JobStep, {"step": {"$gte": 10_000}}) == store.count(JobStep) == 1000


def test_text_that_is_no_unicode_survives(store):
    trace = Trace(
        id="t", created_at=1.0, trace_id="x", tenant="d", endpoint="chat", model="m",
        model_version="m@1", deployment="m", request={"messages": "\ud83d", "nul": "\0"},
    )  # fmt: skip
    store.insert(trace)
    assert store.get(Trace, "t").request == trace.request


def test_indexed_filters_use_their_index(path):
    SqliteStore(path).close()
    sql, values = _condition(Job, {"state": "RUNNING"})
    with sqlite3.connect(path) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT id FROM documents {sql}", values)
        assert "job_by_state" in plan.fetchone()[-1]
    connection.close()


def test_version_changes_with_every_writer(store, path):
    before = store.version()
    assert store.version() == before
    store.insert(step(1))
    after_own = store.version()
    assert after_own != before
    other = SqliteStore(path)
    other.insert(step(2))
    other.close()
    assert store.version() != after_own


COUNT_UP = """
    import sys
    from pathlib import Path
    from quickmatch.store.sqlite import SqliteStore
    from quickmatch.store.documents import Job
    store = SqliteStore(Path(sys.argv[1]))
    def count(job):
        job.num_resumes += 1
    for _ in range(int(sys.argv[2])):
        store.update(Job, "j1", count)
    store.close()
"""


def test_two_processes_and_four_threads_lose_no_update(store, path):
    store.insert(job())
    processes = [run_python(COUNT_UP, path, 100) for _ in range(2)]

    def count(document):
        document.num_resumes += 1

    def work():
        for _ in range(50):
            store.update(Job, "j1", count)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.wait() for p in processes] == [0, 0]
    final = store.get(Job, "j1")
    assert (final.num_resumes, final.revision) == (400, 401)


WRITE_ON = """
    import sys
    from pathlib import Path
    from quickmatch.store.sqlite import SqliteStore
    from quickmatch.store.documents import JobStep
    store = SqliteStore(Path(sys.argv[1]))
    number = 0
    while True:
        store.insert(*(
            JobStep(id=f"{number}-{i}", created_at=number, job="j", step=number) for i in (0, 1)
        ))
        print(number, flush=True)
        number += 1
"""


@pytest.mark.parametrize("acknowledged", [1, 37, 300])
def test_kill_9_loses_nothing_committed_and_leaves_nothing_half(path, acknowledged):
    process = run_python(WRITE_ON, path, stdout=subprocess.PIPE, text=True)
    with process:
        last = -1
        while last < acknowledged:
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
    last = int(rest[-1]) if rest and rest[-1].isdigit() else last
    store = SqliteStore(path)
    steps = [d.step for d in store.find(JobStep)]
    store.close()
    assert set(range(last + 1)) <= set(steps)
    assert all(steps.count(s) == 2 for s in set(steps))


def test_full_disk(store):
    store.insert(job())
    with store._connections.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match=r"disk is full; free space on that disk"):
        store.insert(*(step(n) for n in range(2000)))
    assert store.count(JobStep) == 0
    assert store.get(Job, "j1") is not None  # reading goes on


def test_a_lock_that_does_not_end(store, path):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with store._connections.reading() as connection:
        connection.execute("PRAGMA busy_timeout = 50")
    try:
        with pytest.raises(StoreError, match="another process has held it"):
            store.insert(job())
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    store.insert(job())


def test_a_damaged_file(path):
    path.write_bytes(b"this is no database, it only has its name" * 100)
    with pytest.raises(StoreError, match="damaged or not a store; restore a backup"):
        SqliteStore(path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="check that the folder exists"):
        SqliteStore(tmp_path / "missing" / "store.db")


def test_a_closed_store_says_so(path):
    store = SqliteStore(path)
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.get(Job, "j1")


def test_a_document_of_a_later_version(store, path):
    store.insert(job())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE documents SET body = json_set(body, '$.later', 1)")
    connection.close()
    with pytest.raises(StoreError, match="does not fit this version"):
        store.get(Job, "j1")


def test_many_short_threads_leave_no_connections(store):
    store.insert(job())
    for _ in range(50):
        thread = threading.Thread(target=store.get, args=(Job, "j1"))
        thread.start()
        thread.join()
    assert len(store._connections._idle) == 1


def test_importing_the_store_loads_no_torch():
    code = "import sys, quickmatch.store.open; sys.exit('torch' in sys.modules)"
    assert run_python(code).wait() == 0
