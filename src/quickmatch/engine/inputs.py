"""Turns a StepBatch of plain lists into the tensors of one forward pass."""

import torch

from quickmatch.engine.attention import Attention
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.decoder import StepInputs
from quickmatch.engine.lora import LoraStep
from quickmatch.engine.packing import IntPacker


def make_inputs(
    batch: StepBatch,
    *,
    attention: Attention,
    windows: frozenset[int | None],
    lora: LoraStep | None,
    device: torch.device,
    aux_layers: tuple[int, ...] = (),
    wants_all: bool = False,
) -> StepInputs:
    """Collect every whole number of the step, convert them together, and plan the attention.

    wants_all: logits of every row, sampled or not.
    """
    packer = IntPacker()
    token_ids = packer.add(batch.token_ids)
    positions = packer.add(batch.positions)
    slots = packer.add(batch.slots)
    sample_rows = _sample_rows(batch.spans)
    samples_all = wants_all or len(sample_rows) == len(batch.token_ids)
    rows = None if samples_all else packer.add(sample_rows)
    # A window that no sequence of this batch has outgrown hides nothing: plan it once, as none.
    longest = max(span.context_len + span.num_tokens for span in batch.spans)
    effective = {w: None if w is None or w >= longest else w for w in windows}
    distinct = {w: attention.plan(batch, w, packer) for w in set(effective.values())}
    packer.run(device)
    return StepInputs(
        token_ids=token_ids.tensor,
        positions=positions.tensor,
        slots=slots.tensor,
        sample_rows=None if rows is None else rows.tensor,
        plans={window: distinct[effective[window]] for window in windows},
        lora=lora,
        aux_layers=aux_layers,
    )


def _sample_rows(spans: list[Span]) -> list[int]:
    """Return the last row of each span that samples; of one with a draft, every row."""
    rows: list[int] = []
    for span in spans:
        if span.sample is not None:
            end = span.start + span.num_tokens
            rows += range(end - 1 if span.tree is None else span.start, end)
    return rows
