"""What the adaptation loop knows of a deployment and did to it: a part of its document.

Owns the shape only; the loop in tuning writes it, the command line shows it. It stands in the
store so that a server that is started again goes on where the last one stopped: a training under
way is not begun twice, and a new head is still watched.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from quickmatch.core.speculation_counts import SpeculationCounts

MAX_EVENTS = 50

EventKind = Literal[
    "collecting",  # from now on recorded calls are counted
    "drift",  # the engine saw acceptance fall below what it foretold
    "training",  # a draft job was started
    "gated",  # the trained head was measured on calls that it had not seen; `draft`: it passed
    "failed",  # the job, or putting its head live, went wrong
    "swapped",  # the new head drafts
    "kept",  # it was not worse than what stood before
    "rolled_back",  # it was, and the one before stands again
]
Phase = Literal["collecting", "training", "swapping", "watching"]


class AdaptationEvent(BaseModel):
    """One step of the loop, for people and plots."""

    model_config = ConfigDict(extra="forbid")

    at: float
    event: EventKind
    head: str = ""  # the adapter whose head it is about, "" for the base model's
    draft: str = ""  # "name@version"
    job: str = ""
    text: str = ""
    figures: dict[str, float] = Field(default_factory=dict)


class Window(BaseModel):
    """What speculation did since a time."""

    model_config = ConfigDict(extra="forbid")

    since: float
    counts: SpeculationCounts = Field(default_factory=SpeculationCounts)  # of the head's traffic
    whole: SpeculationCounts = Field(default_factory=SpeculationCounts)  # of the deployment's


class HeadAdaptation(BaseModel):
    """Where the loop stands with one head: the base model's or an adapter's."""

    model_config = ConfigDict(extra="forbid")

    phase: Phase = "collecting"
    since: float  # calls recorded after it are new
    num_new: int = 0  # how many there are
    drifted_at: float | None = None  # an answer to a drift is due
    not_before: float = 0.0  # no training begins earlier
    num_refusals: int = 0  # trainings in a row that came to nothing; each doubles the pause
    begun_at: float = 0.0  # of the last training
    job: str = ""
    num_resumes: int = 0
    starts_afresh: bool = False  # a job that went on from an earlier head failed
    draft: str = ""  # the version that was trained last, once it passed
    previous: str = ""  # what stood before it, "" for none
    before: SpeculationCounts = Field(default_factory=SpeculationCounts)
    swapped_at: float = 0.0
    windows: list[Window] = Field(default_factory=list)  # the last one, and the one under way


class Seen(BaseModel):
    """An engine's report as it was seen last."""

    model_config = ConfigDict(extra="forbid")

    pid: int = 0  # the engine's; 0: none was seen
    whole: SpeculationCounts = Field(default_factory=SpeculationCounts)
    adapters: dict[str, SpeculationCounts] = Field(default_factory=dict)  # by version id, "": base
    num_drifts: dict[str, int] = Field(default_factory=dict)  # the same

    def num_drifts_of(self, version_id: str) -> int:
        """Return how many there were of one adapter's traffic."""
        return self.num_drifts.get(version_id, 0)


class Adaptation(BaseModel):
    """The whole state of one deployment's loop. What an older server kept besides is dropped."""

    model_config = ConfigDict(extra="ignore")

    note: str = ""  # why nothing can happen, with the remedy
    heads: dict[str, HeadAdaptation] = Field(default_factory=dict)  # by adapter name, "": base
    report: Seen = Field(default_factory=Seen)
    events: list[AdaptationEvent] = Field(default_factory=list)  # newest last
    num_events: dict[str, int] = Field(default_factory=dict)  # ever; "gated": "passed", "refused"

    def record(self, event: AdaptationEvent) -> None:
        """Add an event; the oldest go, and stay counted."""
        self.events = [*self.events, event][-MAX_EVENTS:]
        kind: str = event.event
        if event.event == "gated":
            kind = "passed" if event.draft else "refused"
        self.num_events = {**self.num_events, kind: self.num_events.get(kind, 0) + 1}
