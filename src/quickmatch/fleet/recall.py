"""Past answers, put back into a started engine's suffix index from recorded traffic.

Owns which traces are read: successful ones of the deployment and of the weights that are loaded
now, the newest, as many as the index holds. It runs behind serving and delays nothing; an engine
that goes away ends it quietly. Only recorded (opt-in) calls can come back; what others taught the
index went with the process. Invariant: a tenant's answers go to that tenant's index alone.
"""

import asyncio
import logging
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from quickmatch.core.errors import QuickmatchError
from quickmatch.fleet.backend import Backend
from quickmatch.fleet.router import Entry
from quickmatch.store.documents import Trace
from quickmatch.store.protocol import Store

log = logging.getLogger(__name__)

MAX_TRACES = 20_000
BATCH = 16  # answers in one go...
PAUSE_S = 0.02  # ...and then the engine's steps have their turn
_MIN_TOKENS = 1  # that an answer counts for where its usage is not known


@dataclass(frozen=True, slots=True)
class _Answer:
    tenant: str
    version_id: str
    text: str


class Recall:
    """Recalls each version of weights once a life of the engine."""

    def __init__(self, store: Store, deployment: str, backend: Backend, entry: Entry) -> None:
        self._store = store
        self._deployment = deployment
        self._backend = backend
        self._entry = entry
        self._recalled: set[str] = set()  # version ids
        self._task: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Begin to recall what is loaded and was not recalled yet. Returns at once."""
        if self._task is not None and not self._task.done():
            return
        adapters = {w.version_id: w.adapter for w in self._entry.adapters.values()}
        base = {self._entry.base.version_id: None} if self._entry.base is not None else {}
        missing = {v: a for v, a in {**base, **adapters}.items() if v not in self._recalled}
        if missing and self._backend.max_remembered_tokens:
            self._recalled |= missing.keys()
            self._task = asyncio.create_task(self._recall(missing))

    async def restarted(self) -> None:
        """The engine is a new process and remembers nothing."""
        await self.close()
        self._recalled.clear()

    async def close(self) -> None:
        """Stop what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _recall(self, adapters: dict[str, str | None]) -> None:
        """adapters: version id of loaded weights -> adapter version id, None for the base."""
        try:
            budget = self._backend.max_remembered_tokens
            answers = await asyncio.to_thread(self._newest, list(adapters), budget)
            for (tenant, version_id), group in groupby(answers, lambda a: (a.tenant, a.version_id)):
                texts = [answer.text for answer in group]
                for start in range(0, len(texts), BATCH):
                    await self._backend.remember(
                        texts[start : start + BATCH], tenant=tenant, adapter=adapters[version_id]
                    )
                    await asyncio.sleep(PAUSE_S)
        except QuickmatchError as error:
            log.warning("past answers of %s did not come back: %s", self._deployment, error.message)
            return
        except Exception:  # a task of its own: here is its boundary
            log.exception("recalling past answers of %s failed", self._deployment)
            return
        if answers:
            log.info("%d past answers of %s are drafted from", len(answers), self._deployment)

    def _newest(self, version_ids: list[str], max_tokens: int) -> list[_Answer]:
        """Return the newest answers that fit, oldest first, neighbours of a tenant together."""
        where = {
            "deployment": self._deployment,
            "model_version": {"$in": version_ids},
            "status": 200,
        }
        answers: list[_Answer] = []
        num_tokens = 0
        for trace in self._store.find(Trace, where, descending=True, limit=MAX_TRACES):
            num_tokens += max(_MIN_TOKENS, int(trace.usage.get("completion_tokens") or 0))
            if num_tokens > max_tokens:
                break
            newest_first = reversed(_texts(trace.response))
            answers += [_Answer(trace.tenant, trace.model_version, text) for text in newest_first]
        return answers[::-1]


def _texts(response: dict[str, Any] | None) -> list[str]:
    """Return the texts of an answer's choices."""
    texts = []
    for choice in (response or {}).get("choices") or ():
        message = choice.get("message") or {}
        texts.append(message.get("content") or choice.get("text") or "")
    return [text for text in texts if text]
