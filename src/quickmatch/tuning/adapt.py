"""The adaptation loop: recorded traffic becomes better heads, by itself, while a server serves.

Runs in the server's process beside the fleet and loads no torch: trainings are jobs, processes of
their own at low priority. It reads documents (deployments with `speculation.adapt`, traces, jobs)
and writes what is wanted (`Deployment.drafts`) and what it did (`Deployment.adaptation`); the
fleet does the rest. So it may be stopped at any time and goes on where it was.
"""

import asyncio
import logging

from quickmatch.core.clock import Clock, monotonic, wall
from quickmatch.core.errors import ConfigError, NotFound
from quickmatch.core.speculation_settings import SpeculationSettings
from quickmatch.store.adaptation import Adaptation
from quickmatch.store.documents import Deployment, DeploymentState, Model
from quickmatch.store.protocol import Store
from quickmatch.tuning.adapt_head import HeadCycle
from quickmatch.tuning.adapt_jobs import DraftJobs
from quickmatch.tuning.adapt_look import Look

log = logging.getLogger(__name__)

POLL_S = 1.0
REREAD_S = 5.0  # also without a change: a pause may be over
NEEDS_TRACES = (
    "adapt needs recorded traffic and none has come: serve with --trace (or `quickmatch update "
    "deployment NAME --set trace=true`), or send calls with the header x-quickmatch-trace: 1"
)
NEEDS_ANSWERS = (
    "calls are recorded, but adapt can learn from none of them: they failed, were answered by the "
    "exact cache (the header Cache-Control: no-cache passes it by), or have answers of one token"
)
NEEDS_REPORT = "speculation is off in the engine; see that speculation.drafters allows 'head'"


class AdaptationLoop:
    """Looks at every deployment that adapts, again and again."""

    def __init__(
        self, store: Store, jobs: DraftJobs, *, clock: Clock = wall, poll_s: float = POLL_S
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._clock = clock
        self._poll_s = poll_s

    async def run(self) -> None:
        """Look for ever. Errors are logged, and the next look tries again."""
        seen, looked_at = -1, float("-inf")
        while True:
            try:
                version = await asyncio.to_thread(self._store.version)
                if version != seen or monotonic() - looked_at > REREAD_S:
                    seen, looked_at = version, monotonic()
                    await asyncio.to_thread(self.look)
            except Exception:  # the loop's boundary: nothing may end it but cancellation
                log.exception("a look at what adapts failed")
            await asyncio.sleep(self._poll_s)

    def look(self) -> None:
        """Look once at each deployment that is served."""
        for document in self._store.find(Deployment, {"wanted": True}):
            if document.state is not DeploymentState.READY:
                continue
            try:
                self._look_at(document)
            except (ConfigError, NotFound) as error:
                log.warning("deployment %s does not adapt: %s", document.id, error.message)

    def _look_at(self, document: Deployment) -> None:
        settings = SpeculationSettings.parse(document.speculation)
        model = self._store.get(Model, document.model)
        if model is None or not (settings.adapt or _is_on_its_way(document.adaptation)):
            return
        state = document.adaptation.model_copy(deep=True)
        look = Look(self._store, self._clock(), document, model, settings, state)
        if settings.adapt:
            self._step(look)
        else:
            for name in state.heads:
                HeadCycle(look, self._jobs, name).stop()
        self._write(look)

    def _step(self, look: Look) -> None:
        adapters = look.deployment.adapters if look.settings.per_adapter_heads else {}
        names = ["", *adapters]
        for name in [n for n in look.state.heads if n not in names]:
            HeadCycle(look, self._jobs, name).stop()
            look.state.heads = {n: h for n, h in look.state.heads.items() if n != name}
        cycles = {name: HeadCycle(look, self._jobs, name) for name in names}
        drifted = look.observe(names)
        for name, cycle in cycles.items():
            if name in drifted:
                cycle.drifted()
            cycle.step()
        for name in drifted:
            look.begin_window(name)  # what came before says nothing of what comes
        look.state.note = _note(look)

    def _write(self, look: Look) -> None:
        """Write state and wanted heads in one step; nothing where nothing changed."""
        if look.state == look.deployment.adaptation and not look.drafts:
            return

        def change(document: Deployment) -> None:
            document.adaptation = look.state
            kept = {n: d for n, d in document.drafts.items() if n not in look.drafts}
            document.drafts = {**kept, **{n: d for n, d in look.drafts.items() if d}}

        self._store.update(Deployment, look.deployment.id, change)


def _is_on_its_way(state: Adaptation) -> bool:
    return any(head.phase != "collecting" for head in state.heads.values())


def _note(look: Look) -> str:
    stats = look.deployment.engine_info.get("stats")
    if stats and stats.get("speculation") is None:  # not just started: it has told of the rest
        return NEEDS_REPORT
    heads = look.state.heads.values()
    if any(head.num_new or head.begun_at for head in heads):
        return ""
    if any(look.has_calls(head.since) for head in heads):
        return NEEDS_ANSWERS
    return "" if look.deployment.trace else NEEDS_TRACES
