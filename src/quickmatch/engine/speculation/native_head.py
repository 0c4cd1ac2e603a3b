"""A trained head beside a native pass: every draft is one call of src/native/decoder/head.hpp.

The same drafter as head.py's, which says what it computes and what it keeps; this one hands over
addresses and lists. Its keys and values, and the rows that wait, lie on the native side.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quickmatch import _native
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.rope import rope_frequencies
from quickmatch.engine.speculation.head_config import (
    EMBEDDING,
    HeadConfig,
    check_fits,
    default_aux_layers,
)
from quickmatch.engine.speculation.kept_rows import DraftRequest, KeptRows
from quickmatch.engine.speculation.tree import DraftTree, Source

_LANES = 16


def can_run(config: HeadConfig) -> bool:
    """Whether the native kernels take a head of these widths."""
    sizes = (config.hidden_size, config.intermediate_size, config.target_hidden_size)
    has_lanes = all(size % _LANES == 0 for size in sizes)
    return has_lanes and config.head_dim % (2 * _LANES) == 0 and config.head_dim <= 512


class NativeHead:
    """One loaded head. Raises ModelLoadError from the constructor if it is another target's."""

    def __init__(
        self,
        config: HeadConfig,
        tensors: Mapping[str, Tensor],
        target: "_native.Decoder",
        kernels: "_native.Isa",
        *,
        embedding: Tensor,
        model: ModelConfig,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        min_path: float = 0.02,
    ) -> None:
        """config, tensors: as `read_head` gives them. embedding: the target's, [vocab, hidden].

        min_path: paths less likely than this are not drafted.
        """
        check_fits(config, model, has_embedding=EMBEDDING in tensors)
        self.aux_layers = config.aux_layers or default_aux_layers(model.num_layers)
        self._min_path = min_path
        own = tensors.get(EMBEDDING)
        self._embedding = embedding if own is None else own.to(torch.bfloat16).contiguous()
        frequencies, factor = rope_frequencies(config.rope, config.head_dim)
        angle = torch.outer(torch.arange(max_model_len, dtype=torch.float32), frequencies)
        held = {
            **_matrices(tensors),
            **_norms(tensors),
            "embedding": self._embedding,
            "cos": (angle.cos() * factor).contiguous(),
            "sin": (angle.sin() * factor).contiguous(),
        }
        targets = torch.arange(config.draft_vocab_size) + tensors["d2t"]
        self._head = kernels.Head(
            target,
            shape=_shape(config, num_blocks * block_size, block_size, max_model_len),
            weights={name: tensor.data_ptr() for name, tensor in held.items()},
            target_ids=targets.tolist(),
        )
        self.num_bytes = self._head.num_bytes

    def observe(self, kept: list[KeptRows], aux: list[Tensor]) -> None:
        """Take in the rows of a step that became part of their sequences.

        aux: the hidden states entering `aux_layers`, each [num_tokens, target's hidden], bfloat16.
        """
        addresses = [layer.data_ptr() for layer in aux]
        for rows in kept:
            if rows.sequence_id >= 0:  # a warm-up is nobody's
                self._head.observe(
                    sequence_id=rows.sequence_id,
                    start=rows.start,
                    rows=rows.rows,
                    next_token_ids=rows.next_token_ids,
                    blocks=rows.block_table,
                    aux=addresses,
                )

    def forget(self, sequence_id: int) -> None:
        """Drop a sequence that has ended or was preempted."""
        self._head.forget(sequence_id)

    def draft(
        self,
        requests: list[DraftRequest],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        least_path: float = 0.0,
    ) -> list[DraftTree]:
        """Return a tree for each request: at most `depth` levels, grown `width` beams wide.

        Paths less likely than least_path are not gone on from. Of the nodes looked at the likeliest
        max_nodes are kept. The tree is empty for a sequence whose last row was not observed.
        """
        asked: list[int] = []
        for request in requests:
            asked += (request.sequence_id, len(request.token_ids), request.token_ids[-1])
        made = self._head.draft(
            asked,
            depth=depth,
            width=width,
            max_nodes=max_nodes,
            min_path=self._min_path,
            least_path=least_path,
        )
        return [
            DraftTree(token_ids, parents, confidences, [Source.HEAD] * size, [0] * size)
            for token_ids, parents, confidences in made
            for size in (len(token_ids),)
        ]


def _shape(
    config: HeadConfig, num_slots: int, block_size: int, max_model_len: int
) -> dict[str, float]:
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_aux": config.num_aux,
        "target_hidden_size": config.target_hidden_size,
        "draft_vocab_size": config.draft_vocab_size,
        "vocab_size": config.vocab_size,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "num_slots": num_slots,
        "block_size": block_size,
        "max_model_len": max_model_len,
        "norm_before_residual": int(config.norm_before_residual),
    }


def _matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    attention, mlp = "midlayer.self_attn", "midlayer.mlp"
    names = {
        "fuse": ("fc.weight",),
        "qkv": tuple(f"{attention}.{part}_proj.weight" for part in "qkv"),
        "o": (f"{attention}.o_proj.weight",),
        "gate_up": (f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"),
        "down": (f"{mlp}.down_proj.weight",),
        "lm_head": ("lm_head.weight",),
    }
    return {
        key: torch.cat([tensors[part].to(torch.bfloat16) for part in parts])
        for key, parts in names.items()
    }


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "embedding_norm": "midlayer.input_layernorm.weight",
        "hidden_norm": "midlayer.hidden_norm.weight",
        "mlp_norm": "midlayer.post_attention_layernorm.weight",
        "final_norm": "norm.weight",
    }
    return {key: tensors[name].float().contiguous() for key, name in names.items()}
