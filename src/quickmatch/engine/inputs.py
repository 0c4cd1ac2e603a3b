"""Turns a StepBatch of plain lists into the tensors of one forward pass."""

import torch

from quickmatch.engine.attention import Attention
from quickmatch.engine.batch import StepBatch
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
    wanted: list[int],
    aux_layers: tuple[int, ...] = (),
) -> StepInputs:
    """Collect every whole number of the step, convert them together, and plan the attention.

    wanted: the rows whose logits are asked for.
    """
    packer = IntPacker()
    token_ids = packer.add(batch.token_ids)
    positions = packer.add(batch.positions)
    slots = packer.add(batch.slots)
    wants_all = wanted == list(range(len(batch.token_ids)))
    rows = None if wants_all else packer.add(wanted)
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
