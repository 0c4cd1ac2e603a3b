"""The cycle of one head: collect, train, swap, watch, keep or roll back.

Owns when a training is worth beginning and what follows from how it came out. Invariants: at most
one head of a deployment is on its way at a time, so that what is measured after a swap is its
doing; trainings are never nearer than `adapt_interval_s`, and each that comes to nothing doubles
the pause.

    collecting ─enough new calls─▶ training ─passed─▶ swapping ─READY─▶ watching ─▶ kept
        ▲                             │                  │                 │
        └──── refused or failed ──────┴──── FAILED ──────┴──── worse: rolled back
"""

from collections.abc import Callable

from quickmatch.core.errors import QuickmatchError
from quickmatch.core.speculation_counts import SpeculationCounts
from quickmatch.store.adaptation import EventKind, HeadAdaptation
from quickmatch.store.documents import Job, JobState
from quickmatch.tuning.adapt_jobs import DraftJobs, DraftOrder, outcome_of
from quickmatch.tuning.adapt_look import Look
from quickmatch.tuning.adapt_verdict import both, has_fallen, judge

DRIFT_SHARE = 4  # after a drift a quarter of the usual number of calls is enough...
MIN_CALLS = 8  # ...but no job learns from fewer
MAX_DOUBLINGS = 6
MIN_PAUSE_S = 10.0  # what doubles where no interval is set
MAX_RESUMES = 3
PATIENCE = 20  # times as many calls of the whole deployment, and a head's few are judged


class HeadCycle:
    """One look's step of one head. `name`: the adapter it is for, "" for the base model."""

    def __init__(self, look: Look, jobs: DraftJobs, name: str) -> None:
        self._look = look
        self._jobs = jobs
        self._name = name
        self._head: HeadAdaptation = look.head(name)

    def step(self) -> None:
        """Go on from where the last look left."""
        steps: dict[str, Callable[[], None]] = {
            "collecting": self._collect,
            "training": self._train,
            "swapping": self._swap,
            "watching": self._watch,
        }
        steps[self._head.phase]()

    def drifted(self) -> None:
        """The traffic is not what the head was made for any more."""
        look, head = self._look, self._head
        is_watched = head.phase == "watching"
        if head.drifted_at is None:
            look.record("drift", self._name, figures=look.recent(self._name).figures())
            head.drifted_at = look.now
            # To see whether it lasts; a swap's before and after could not be compared any more.
            is_comparable = head.phase == "collecting"
            head.before = look.recent(self._name) if is_comparable else SpeculationCounts()
        if is_watched:
            self._settle("kept", "the traffic changed while it was watched")

    def stop(self) -> None:
        """Adaptation was turned off: what is live stays."""
        head = self._head
        if head.phase == "training":
            self._give_up("failed", "adaptation was turned off")
        elif head.phase != "collecting":
            self._settle("kept", "adaptation was turned off")

    # ---- collecting

    def _collect(self) -> None:
        look, head = self._look, self._head
        since, quorum, earliest = head.since, look.settings.adapt_min_requests, head.not_before
        if head.drifted_at is not None:  # refusals on other traffic say nothing of this one
            since, quorum = head.drifted_at, max(MIN_CALLS, quorum // DRIFT_SHARE)
            earliest = min(earliest, head.begun_at + look.settings.adapt_interval_s)
        is_early = look.now < earliest
        if is_early and head.num_new >= quorum:
            return  # counting on would change nothing
        head.num_new = look.num_calls_of(self._name, since)
        if head.num_new < quorum or is_early or self._is_another_on_its_way():
            return
        if head.drifted_at is not None and not has_fallen(head.before, look.recent(self._name)):
            figures = both(head.before, look.recent(self._name))
            look.record("drift", self._name, text="over without a training", figures=figures)
            head.drifted_at, head.num_new = None, 0
            return
        self._begin(head.drifted_at)

    def _is_another_on_its_way(self) -> bool:
        busy = [h for h in self._look.state.heads.values() if h.phase != "collecting"]
        return bool(busy) or self._jobs.is_any_running()

    def _begin(self, since: float | None) -> None:
        """Order a training on the newest calls, after a drift on those since then alone."""
        look, head = self._look, self._head
        settings, deployment = look.settings, look.deployment
        where = look.calls_of(self._name)
        if since is not None:
            where["created_at"] = {"$gt": since}
        order = DraftOrder(
            model=deployment.model,
            deployment=deployment.id,
            adapter=self._name,
            trace_filter=where,
            max_sequences=settings.adapt_max_requests,
            output_draft="-".join(filter(None, (deployment.id, self._name, "draft"))),
            warm_start_from=self._warm_start(),
        )
        head.begun_at, head.num_resumes, head.job, head.draft = look.now, 0, "", ""
        head.drifted_at = None  # one that comes from now on is answered by the next training
        head.not_before = look.now + settings.adapt_interval_s
        try:
            head.job = self._jobs.begin(order)
        except QuickmatchError as error:
            self._give_up("failed", error.message)
            return
        head.phase = "training"
        why = "after a drift" if since is not None else "on new calls"
        figures = {"num_new_calls": float(head.num_new)}
        look.record("training", self._name, job=head.job, text=why, figures=figures)

    def _warm_start(self) -> str:
        """Return the version that stands, for an adapter's first head the base model's."""
        if self._head.starts_afresh:
            return ""
        drafts = self._look.deployment.drafts
        return drafts.get(self._name) or drafts.get("", "")

    # ---- training

    def _train(self) -> None:
        job = self._jobs.find(self._head.job)
        if job is None:
            self._give_up("failed", "its job was deleted")
        elif job.state is JobState.COMPLETED:
            self._gate(job)
        elif job.state is JobState.INTERRUPTED and self._head.num_resumes < MAX_RESUMES:
            self._resume(job)
        elif job.state.is_final or job.state is JobState.INTERRUPTED:
            had_start = bool(job.settings.get("warm_start_from"))
            self._head.starts_afresh = job.state is JobState.FAILED and had_start
            self._give_up("failed", job.error or f"its job is {job.state}")

    def _resume(self, job: Job) -> None:
        self._head.num_resumes += 1
        try:
            self._jobs.resume(job.id)
        except QuickmatchError as error:
            self._give_up("failed", error.message)

    def _gate(self, job: Job) -> None:
        look, head, found = self._look, self._head, outcome_of(job)
        head.starts_afresh = False
        gain, least = found.gain, look.settings.adapt_min_gain
        is_enough = gain is None or gain >= least
        if not (found.passed and is_enough and found.draft):
            why = found.message if is_enough else f"a gain of {gain:.1%} is under {least:.1%}"
            self._give_up("gated", f"refused: {why or 'it is not better'}", found.figures)
            return
        text = f"passed: {found.message}"
        look.record(
            "gated", self._name, draft=found.draft, job=job.id, text=text, figures=found.figures
        )
        head.phase, head.draft = "swapping", found.draft
        head.previous = look.deployment.drafts.get(self._name, "")
        head.before = look.recent(self._name)
        look.want_draft(self._name, found.draft)

    # ---- swapping, watching

    def _swap(self) -> None:
        look, head = self._look, self._head
        if self._is_changed_by_hand():
            return
        status = look.deployment.draft_status.get(self._name)
        if status is None or status.draft != head.draft or status.state == "LOADING":
            return
        if status.state == "FAILED":
            look.want_draft(self._name, head.previous)
            self._give_up("failed", status.error)
            return
        timings = {"load_s": status.load_s, "swap_s": status.swap_s}
        figures = {name: value for name, value in timings.items() if value is not None}
        look.record("swapped", self._name, draft=head.draft, figures=figures)
        head.phase, head.swapped_at = "watching", look.now
        look.begin_window(self._name)

    def _watch(self) -> None:
        look, head = self._look, self._head
        if self._is_changed_by_hand():
            return
        enough = look.settings.adapt_watch_requests
        is_few = look.num_calls_of(self._name, head.swapped_at) < enough
        if is_few and look.num_calls(head.swapped_at) < PATIENCE * enough:
            return  # others wait until this one is judged, but not for ever
        after = look.recent(self._name)
        if after.num_emitted == 0 and not is_few:
            return  # the engine's next report is on its way
        verdict = judge(head.before, after)
        figures = both(head.before, after)
        if verdict.keeps:
            head.num_refusals = 0
            self._settle("kept", verdict.text, figures)
            return
        look.want_draft(self._name, head.previous)
        self._give_up("rolled_back", verdict.text, figures)
        look.begin_window(self._name)

    def _is_changed_by_hand(self) -> bool:
        is_changed = self._look.deployment.drafts.get(self._name, "") != self._head.draft
        if is_changed:
            self._settle("kept", "another head was put in its place by hand")
        return is_changed

    # ---- back to collecting

    def _settle(self, event: EventKind, text: str, figures: dict[str, float] | None = None) -> None:
        """Record how it ended and collect anew: what came since the training began is new."""
        head = self._head
        draft, job = head.draft, head.job if event in ("failed", "gated") else ""
        self._look.record(event, self._name, draft=draft, job=job, text=text, figures=figures)
        self._jobs.release(head.job)
        head.phase, head.since, head.num_new = "collecting", head.begun_at, 0

    def _give_up(
        self, event: EventKind, text: str, figures: dict[str, float] | None = None
    ) -> None:
        """It came to nothing: wait twice as long as the last time."""
        look, head = self._look, self._head
        head.num_refusals += 1
        pause_s = max(look.settings.adapt_interval_s, MIN_PAUSE_S)
        pause_s *= 2.0 ** min(head.num_refusals, MAX_DOUBLINGS)
        head.not_before = look.now + pause_s
        self._settle(event, text, figures)
