"""A Prometheus counter of what somebody else counts and reports as a sum.

Invariant: it never falls. Where a sum has fallen, its engine's process is a new one, which began at
zero, and all of the sum is new. (What the old one did after the last scrape is not in it.)
"""

from prometheus_client import CollectorRegistry, Counter


class ReportedCounter:
    """One name, a series for each deployment and further labels."""

    def __init__(
        self, name: str, help_text: str, *labels: str, registry: CollectorRegistry
    ) -> None:
        """name: without `_total`, which is put behind it."""
        self._counter = Counter(name, help_text, ("deployment", *labels), registry=registry)
        self._sums: dict[tuple[str, ...], float] = {}  # by labels, as last reported

    def set(self, value: float, deployment: str, *labels: str) -> None:
        """Take over the newest sum."""
        key = (deployment, *labels)
        before = self._sums.get(key, 0.0)
        self._counter.labels(*key).inc(value - before if value >= before else value)
        self._sums[key] = value

    def remove(self, deployment: str) -> None:
        """Drop a deployment's series."""
        for key in [key for key in self._sums if key[0] == deployment]:
            del self._sums[key]
            self._counter.remove(*key)
