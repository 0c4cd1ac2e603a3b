"""Traces reach the store in batches, or are dropped and counted; no call ever waits."""

import threading
import time

from quickmatch.core.errors import StoreError
from quickmatch.observe import Metrics, TraceWriter
from quickmatch.observe.traces import TraceSettings
from quickmatch.store.documents import Document, Trace


class FakeStore:
    """Takes inserts; can be held or made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: StoreError | None = None

    def insert(self, *documents: Document) -> None:
        self.gate.wait(5)
        if self.error is not None:
            raise self.error
        self.batches.append([d.id for d in documents])


def trace(number: int) -> Trace:
    return Trace(
        id=f"t{number}",
        created_at=0.0,
        trace_id=f"t{number}",
        tenant="default",
        endpoint="chat",
        model="tiny",
        model_version="tiny@1",
        deployment="tiny",
        request={},
    )


def writer(store: FakeStore, metrics: Metrics, **settings: float) -> TraceWriter:
    return TraceWriter(store, metrics, TraceSettings(**settings))  # type: ignore[arg-type]


def test_flush_means_written_and_batches_are_few() -> None:
    store, metrics = FakeStore(), Metrics()
    traces = writer(store, metrics, linger_s=0.05)
    for number in range(100):
        assert traces.record(trace(number))
    assert traces.flush()
    assert [i for batch in store.batches for i in batch] == [f"t{i}" for i in range(100)]
    assert len(store.batches) <= 3
    traces.close()


def test_a_full_queue_drops_counts_and_never_blocks() -> None:
    store, metrics = FakeStore(), Metrics()
    store.gate.clear()
    traces = writer(store, metrics, max_queue_len=5, linger_s=0.0, max_batch=5)
    began = time.monotonic()
    taken = sum(traces.record(trace(number)) for number in range(50))
    assert time.monotonic() - began < 1.0
    assert taken <= 10
    assert f"quickmatch_traces_dropped_total {50 - taken}.0" in metrics.render().decode()
    store.gate.set()
    traces.close()
    assert sum(map(len, store.batches)) == taken


def test_close_writes_what_is_queued_and_later_traces_are_dropped() -> None:
    store, metrics = FakeStore(), Metrics()
    traces = writer(store, metrics, linger_s=5.0)
    traces.record(trace(1))
    traces.close()
    assert store.batches == [["t1"]]
    assert not traces.record(trace(2))


def test_a_store_that_fails_does_not_end_tracing() -> None:
    store, metrics = FakeStore(), Metrics()
    traces = writer(store, metrics, linger_s=0.0)
    store.error = StoreError("disk full")
    traces.record(trace(1))
    assert traces.flush()
    store.error = None
    traces.record(trace(2))
    assert traces.flush()
    assert store.batches == [["t2"]]
    assert "quickmatch_traces_dropped_total 1.0" in metrics.render().decode()
    traces.close()
