"""How much of a step is in memory at once: parts of a batch, and what the head sees of a sequence.

Owns the arithmetic of a step's memory. The head's layer computes a row for each token, and for each
token of an answer one more at every depth of its drafts, all kept for the gradient; so memory goes
with these rows. Plain Python.

Invariant: a part has at most `max_rows` rows, padding included. A batch that has no more is one
part, as if there was no bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quickmatch.tuning.draft_data import TokenSequence


@dataclass(frozen=True, slots=True)
class Sight:
    """The tokens [start, stop) of a sequence that a head learns on."""

    start: int
    stop: int
    num_prompt: int  # of them tokens of the prompt, at least one

    @property
    def num_drafts(self) -> int:
        """At how many rows a draft begins."""
        return self.stop - self.start - self.num_prompt - 1


@dataclass(frozen=True, slots=True)
class RowBudget:
    """max_rows: in memory at once. num_steps: how deep drafts are unrolled."""

    max_rows: int
    num_steps: int

    def sight(self, sequence: TokenSequence) -> Sight:
        """Return what of a sequence is learnt on: all that fits.

        Of an answer that would take more than half the rows, and has a prompt that takes the rest,
        the end is cut; then of the prompt the beginning, which is furthest from what is foretold.
        """
        num_prompt = len(sequence.prompt)
        room = max(self.max_rows // 2, self.max_rows - num_prompt)
        num_drafts = min(len(sequence.output) - 1, max(1, room // (1 + self.num_steps)))
        num_seen = min(num_prompt, max(1, self.max_rows - num_drafts * (1 + self.num_steps)))
        return Sight(num_prompt - num_seen, num_prompt + num_drafts + 1, num_seen)

    def parts(self, sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        """Split a batch in order. Sequences of similar length leave the least padding."""
        parts: list[list[TokenSequence]] = []
        longest = most = 0
        for sequence in sequences:
            sight = self.sight(sequence)
            longest = max(longest, sight.stop - sight.start - 1)
            most = max(most, sight.num_drafts)
            num_rows = longest + most * self.num_steps
            if parts and num_rows * (len(parts[-1]) + 1) <= self.max_rows:
                parts[-1].append(sequence)
                continue
            parts.append([sequence])
            longest, most = sight.stop - sight.start - 1, sight.num_drafts
        return parts
