"""Perplexity on the assistant tokens of a dataset, for a base model and for its adapters.

Owns the measure: exp of the mean loss over learnt tokens, the same tokens that training would
learn, weighted the same. Loads torch.
"""

from collections.abc import Sequence

import numpy as np
import torch

from quickmatch.tuning.batches import collate, ordered_batches
from quickmatch.tuning.chat_rows import ChatRow
from quickmatch.tuning.encode import Encoded, encode_rows
from quickmatch.tuning.load import Loaded, attach_adapter, load_base, set_threads
from quickmatch.tuning.loss import token_losses
from quickmatch.tuning.metrics import Score, bootstrap_sums


def perplexity(
    base_path: str,
    rows: Sequence[ChatRow],
    *,
    adapter_path: str = "",
    batch_size: int = 8,
    max_context_length: int | None = None,
    num_threads: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Score:
    """Return the perplexity of the rows' answers, with an interval over rows.

    base_path: folder, hub id or the shipped model's name. Rows too long for the context are left
    out, as in training. Raises ModelLoadError, DatasetError.
    """
    if num_threads is not None:
        set_threads(num_threads)
    loaded = load_base(base_path, device=device, dtype=dtype)
    if adapter_path:
        loaded = attach_adapter(loaded, adapter_path)
    limit = min(max_context_length or loaded.max_length, loaded.max_length)
    encoded = encode_rows(rows, loaded.tokenizer, limit, name="to evaluate")
    sums = row_sums(loaded, encoded.rows, batch_size)
    return bootstrap_sums(sums, lambda s: np.exp(s[:, 0] / s[:, 1]))


def row_sums(
    loaded: Loaded, rows: Sequence[Encoded], batch_size: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return for each row its weighted sum of losses (nats) and its sum of weights: [n, 2]."""
    loaded.model.eval()
    sums = np.zeros((len(rows), 2))
    with torch.no_grad():
        for indexes in ordered_batches([len(r.token_ids) for r in rows], batch_size):
            batch = collate([rows[i] for i in indexes], loaded.pad_id, loaded.device)
            with loaded.precision():
                losses, weights = token_losses(loaded.causal_lm, batch)
            owner = (batch.weights[:, 1:] != 0).nonzero()[:, 0].cpu().numpy()  # [num_learnt]
            for column, values in enumerate((losses * weights, weights)):
                found = np.bincount(owner, values.double().cpu().numpy(), minlength=len(indexes))
                sums[indexes, column] = found
    return sums
