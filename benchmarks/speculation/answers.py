"""What a target answers to its calls, plainly and greedily; made once a target and call list.

It serves two ends. Calls whose answer goes in circles are left out of everything, because a loop is
the easiest text to draft; their share is reported. And the answers to train calls are what a
server would have in its traces, for the suffix index to start from.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contender import Contender, ContenderSpec
from benchmarks.speculation.calls import Call, answer_of, loops

_CHUNK = 64
_CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Answered:
    """Calls with the target's own answers: those that do not loop, and how many do."""

    indexes: list[int]  # of the calls among those that were asked
    calls: list[Call]
    answers: list[list[int]]  # with their end token, where they have one
    loop_shares: dict[str, float]  # by workload, of all calls that were asked

    def of(self, workload: str) -> list[Call]:
        """Return one workload's calls."""
        return [call for call in self.calls if call.workload == workload]


def answered(target: Path, calls: Sequence[Call], spec: ContenderSpec) -> Answered:
    """Ask the target, or read what it said before from its folder.

    spec: plain decoding with our engine.
    """
    path = target / f"answers-{_fingerprint(calls)}.json"
    if not path.exists():
        path.write_text(json.dumps(_ask(target, calls, spec)), encoding="utf-8")
    answers: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
    verdicts = [loops(answer_of(answer)) for answer in answers]
    shares = {}
    for name in sorted({call.workload for call in calls}):
        own = [bad for call, bad in zip(calls, verdicts, strict=True) if call.workload == name]
        shares[name] = sum(own) / len(own)
    sound = [i for i, is_loop in enumerate(verdicts) if not is_loop]
    return Answered(sound, [calls[i] for i in sound], [answers[i] for i in sound], shares)


def _ask(target: Path, calls: Sequence[Call], spec: ContenderSpec) -> list[list[int]]:
    answers: list[list[int]] = []
    with Contender(spec) as plain:
        plain.load(target)
        for start in range(0, len(calls), _CHUNK):
            chunk = [call.as_json() for call in calls[start : start + _CHUNK]]
            reply = plain.ask("complete", calls=chunk, concurrency=_CONCURRENCY)
            answers += [output["token_ids"] for output in reply["outputs"]]
            print(f"  answers of {target.name}: {len(answers)} of {len(calls)}", file=sys.stderr)
    return answers


def _fingerprint(calls: Sequence[Call]) -> str:
    told = json.dumps([call.as_json() for call in calls])
    return hashlib.sha256(told.encode()).hexdigest()[:12]
