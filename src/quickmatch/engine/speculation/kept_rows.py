"""What drafters that run a model need to know of the target's steps. Plain lists, no tensors."""

from dataclasses import dataclass


@dataclass(slots=True)
class KeptRows:
    """The rows of one sequence in a step that became part of it.

    Of a prompt's chunk these are all; of a verified draft, the last token and the accepted nodes.
    """

    sequence_id: int
    start: int  # position of the first
    rows: list[int]  # rows of the step's flattened batch, in order of position
    next_token_ids: list[int]  # for each, the token that follows it
    block_table: list[int]
    adapter_row: int = -1


@dataclass(slots=True)
class DraftRequest:
    """A sequence that a drafter is to go on with."""

    sequence_id: int
    token_ids: list[int]  # all of it; the last one's KV is not in the target's cache yet
    block_table: list[int]
    adapter_row: int = -1
