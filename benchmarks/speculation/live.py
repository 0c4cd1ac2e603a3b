"""One caller of a live server, and a reader of its counters and of what its adaptation did."""

import time
from collections.abc import Sequence

import httpx

from benchmarks.speculation.drift_rates import Counters, Window
from benchmarks.speculation.workloads import Item
from quickmatch.store.adaptation import AdaptationEvent
from quickmatch.store.documents import Deployment
from quickmatch.store.protocol import Store, require

_REPORT_S = 0.3  # the engine reports four times a second while it is busy


class Client:
    """Of one deployment, which bears its model's name."""

    def __init__(self, url: str, store: Store, model: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=120.0, trust_env=False)
        self._metrics_url = url.removesuffix("/v1") + "/metrics"
        self._store, self._model = store, model
        self._before = Counters()

    def window(
        self, items: Sequence[Item], num_before: int, *, recorded: Sequence[Item] = ()
    ) -> Window:
        """Send calls one after the other; return their rates. recorded: of them, for a trace."""
        num_tokens, seconds = 0, 0.0
        for item in items:
            started = time.perf_counter()
            num_tokens += self._call(item, is_recorded=item in recorded)
            seconds += time.perf_counter() - started
        time.sleep(_REPORT_S)
        now = Counters.read(self._http.get(self._metrics_url).text)
        window = now.since(self._before).window(num_before + len(items), num_tokens / seconds)
        self._before = now
        return window

    def events(self) -> list[AdaptationEvent]:
        """Return what the adaptation loop has done."""
        return require(self._store, Deployment, self._model).adaptation.events

    def drafts(self) -> dict[str, str]:
        """Return the heads that are wanted, by adapter."""
        return require(self._store, Deployment, self._model).drafts

    def _call(self, item: Item, *, is_recorded: bool) -> int:
        body = {
            "model": self._model,
            "messages": list(item.messages),
            "max_tokens": item.max_tokens,
            "temperature": 0.0,
        }
        headers = {"x-quickmatch-trace": "1"} if is_recorded else {}
        reply = self._http.post("/chat/completions", json=body, headers=headers)
        reply.raise_for_status()
        return int(reply.json()["usage"]["completion_tokens"])
