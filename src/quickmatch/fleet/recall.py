"""Past answers, put back into a started engine's suffix index from recorded traffic.

Owns which traces are read: successful ones of the deployment and of the weights that are loaded
now, the newest, as many as the index holds. It runs behind serving and delays nothing; an engine
that goes away ends it quietly. Only recorded (opt-in) calls can come back; what others taught the
index went with the process. Invariant: an answer is drafted from for calls of the same tenant and
`prompt_cache_isolation_key` alone.
"""

import asyncio
import logging
from itertools import groupby

from quickmatch.core.errors import QuickmatchError
from quickmatch.fleet.backend import Backend, PastAnswer
from quickmatch.fleet.past_answers import past_answers
from quickmatch.fleet.router import Entry
from quickmatch.store.documents import Trace
from quickmatch.store.protocol import Store

log = logging.getLogger(__name__)

MAX_TRACES = 20_000
MAX_TRIES = 3  # of a version; a store may be busy for a while
BATCH = 16  # calls in one go...
PAUSE_S = 0.02  # ...and then the engine's steps have their turn
_MIN_TOKENS = 1  # that an answer counts for where its usage is not known


class Recall:
    """Recalls each version of weights once a life of the engine."""

    def __init__(self, store: Store, deployment: str, backend: Backend, entry: Entry) -> None:
        self._store = store
        self._deployment = deployment
        self._backend = backend
        self._entry = entry
        self._tries_left: dict[str, int] = {}  # by version id
        self._task: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Begin to recall what is loaded and was not recalled yet. Returns at once."""
        if self._task is not None and not self._task.done():
            return
        adapters = {w.version_id: w.adapter for w in self._entry.adapters.values()}
        base = {self._entry.base.version_id: None} if self._entry.base is not None else {}
        missing = {
            version_id: adapter
            for version_id, adapter in {**base, **adapters}.items()
            if self._tries_left.setdefault(version_id, MAX_TRIES)
        }
        if missing and self._backend.max_remembered_tokens:
            self._task = asyncio.create_task(self._recall(missing))

    async def restarted(self) -> None:
        """The engine is a new process and remembers nothing."""
        await self.close()
        self._tries_left.clear()

    async def close(self) -> None:
        """Stop what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _recall(self, adapters: dict[str, str | None]) -> None:
        """adapters: version id of loaded weights -> adapter version id, None for the base."""
        for version_id in adapters:
            self._tries_left[version_id] -= 1
        try:
            budget = self._backend.max_remembered_tokens
            traces = await asyncio.to_thread(self._newest, list(adapters), budget)
            num_answers = 0
            for start in range(0, len(traces), BATCH):
                read = await asyncio.to_thread(self._read, traces[start : start + BATCH])
                for version_id, group in groupby(read, lambda one: one[0]):
                    answers = [answer for _, answer in group]
                    await self._backend.remember(answers, adapter=adapters[version_id])
                    num_answers += len(answers)
                await asyncio.sleep(PAUSE_S)
        except QuickmatchError as error:
            log.warning("past answers of %s did not come back: %s", self._deployment, error.message)
            return
        except Exception:  # a task of its own: here is its boundary
            log.exception("recalling past answers of %s failed", self._deployment)
            return
        for version_id in adapters:
            self._tries_left[version_id] = 0
        if num_answers:
            log.info("%d past answers of %s are drafted from", num_answers, self._deployment)

    def _newest(self, version_ids: list[str], max_tokens: int) -> list[str]:
        """Return the ids of the newest traces whose answers fit, oldest first.

        Not of calls that the exact cache answered: the index learnt nothing by those either.
        """
        where = {
            "deployment": self._deployment,
            "model_version": {"$in": version_ids},
            "status": 200,
            "cache": {"$ne": "hit"},
        }
        ids: list[str] = []
        num_tokens = 0
        for trace in self._store.find(Trace, where, descending=True, limit=MAX_TRACES):
            num_tokens += max(_MIN_TOKENS, int(trace.usage.get("completion_tokens") or 0))
            if num_tokens > max_tokens:
                break
            ids.append(trace.id)
        return ids[::-1]

    def _read(self, ids: list[str]) -> list[tuple[str, PastAnswer]]:
        """Return answers with the version ids of the weights that gave them, in order."""
        found = [self._store.get(Trace, trace_id) for trace_id in ids]
        return [
            (trace.model_version, answer)
            for trace in found
            if trace is not None  # deleted meanwhile
            for answer in past_answers(trace)
        ]
