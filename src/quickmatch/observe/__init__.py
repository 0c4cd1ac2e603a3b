"""What happened: Prometheus metrics and traces, and later cost and audit."""

from quickmatch.observe.metrics import Metrics
from quickmatch.observe.traces import TraceWriter

__all__ = ["Metrics", "TraceWriter"]
