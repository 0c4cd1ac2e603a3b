"""What a trained head's shape is: one attention layer over fused hidden states of its target.

Owns the record, the names and shapes of a head's tensors, and the check that a head belongs to a
target. Knows no files (head_folder.py) and no computation (head_layer.py).

Names of tensors are EAGLE-3's: `midlayer.` is the one layer. `aux_layers` are the layers *before*
which the target's hidden states are taken: i means the state that enters layer i, that is what
layer i - 1 puts out. Others number by what layer i puts out, which is one less.

Source: EAGLE-3 (arXiv 2503.01840).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.model_config import ModelConfig, RopeConfig

EMBEDDING = "embed_tokens.weight"  # may be absent: the target's is used then


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Shape and switches of one head."""

    vocab_size: int  # the target's
    draft_vocab_size: int  # tokens that the head can propose
    target_hidden_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope: RopeConfig
    aux_layers: tuple[int, ...] = ()  # ascending; (): default_aux_layers of the target
    norm_before_residual: bool = False  # the residual is the normed g, not g

    @property
    def num_aux(self) -> int:
        """How many hidden states are fused."""
        return len(self.aux_layers) or 3

    @property
    def layer(self) -> ModelConfig:
        """The head's layer as a model of one layer: what a KV cache and a rotary table need."""
        return ModelConfig(
            architecture="LlamaForCausalLMEagle3",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=1,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_model_len=self.max_model_len,
            rms_norm_eps=self.rms_norm_eps,
            rope=self.rope,
            windows=(None,),
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a head must have, by name."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention, mlp = "midlayer.self_attn", "midlayer.mlp"
        return {
            "fc.weight": (hidden, self.num_aux * self.target_hidden_size),
            "midlayer.input_layernorm.weight": (hidden,),
            "midlayer.hidden_norm.weight": (hidden,),
            f"{attention}.q_proj.weight": (query, 2 * hidden),
            f"{attention}.k_proj.weight": (key, 2 * hidden),
            f"{attention}.v_proj.weight": (key, 2 * hidden),
            f"{attention}.o_proj.weight": (hidden, query),
            "midlayer.post_attention_layernorm.weight": (hidden,),
            f"{mlp}.gate_proj.weight": (inner, hidden),
            f"{mlp}.up_proj.weight": (inner, hidden),
            f"{mlp}.down_proj.weight": (hidden, inner),
            "norm.weight": (hidden,),
            "lm_head.weight": (self.draft_vocab_size, hidden),
            "d2t": (self.draft_vocab_size,),
            "t2d": (self.vocab_size,),
        }


def default_aux_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers that a head reads where its folder names none: early, middle, late."""
    if num_layers >= 8:
        return (2, num_layers // 2, num_layers - 3)
    return tuple(sorted({min(1, num_layers - 1), num_layers // 2, num_layers - 1}))


def new_head_config(
    model: ModelConfig, *, draft_vocab_size: int, aux_layers: tuple[int, ...] = ()
) -> HeadConfig:
    """Return the usual head for a target: a layer of the target's own shape."""
    return HeadConfig(
        vocab_size=model.vocab_size,
        draft_vocab_size=draft_vocab_size,
        target_hidden_size=model.hidden_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        max_model_len=model.max_model_len,
        rms_norm_eps=model.rms_norm_eps,
        rope=model.rope,
        aux_layers=aux_layers or default_aux_layers(model.num_layers),
    )


def check_tensors(config: HeadConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ModelLoadError unless these are all tensors of a head of this shape.

    d2t holds offsets, int64: draft token i is the target's token i + d2t[i]. t2d says of each of
    the target's tokens whether the head can propose it.
    """
    shapes = config.tensor_shapes()
    known = {*shapes, EMBEDDING}
    for name in tensors:
        if name not in known:
            raise ModelLoadError(
                f"{source} holds the tensor {name}, which no EAGLE-3 head has; "
                "export the head again with one Llama layer and no biases"
            )
    for name, shape in shapes.items():
        if name not in tensors:
            raise ModelLoadError(f"{source} has no tensor {name}; export the head again")
        _check_shape(name, tensors[name], shape, source)
    if EMBEDDING in tensors:
        shape = (config.vocab_size, config.hidden_size)
        _check_shape(EMBEDDING, tensors[EMBEDDING], shape, source)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelLoadError(
                f"{name} in {source} holds values that are not finite: its training went wrong "
                "or its file is damaged; train or export the head again"
            )
    _check_mapping(config, tensors["d2t"], tensors["t2d"], source)


def check_fits(config: HeadConfig, model: ModelConfig, *, has_embedding: bool) -> None:
    """Raise ModelLoadError unless a head of this shape can draft for the target."""
    for what, seen, needed in (
        ("vocabulary", config.vocab_size, model.vocab_size),
        ("hidden size", config.target_hidden_size, model.hidden_size),
    ):
        if seen != needed:
            raise ModelLoadError(
                f"the head was made for a target with the {what} {seen}, this model's is "
                f"{needed}; deploy the head on the model it was trained on"
            )
    if not has_embedding and config.hidden_size != model.hidden_size:
        raise ModelLoadError(
            f"the head is {config.hidden_size} wide and has no {EMBEDDING}, the target's "
            f"embeddings are {model.hidden_size} wide; export the head with its embeddings"
        )
    layers = config.aux_layers or default_aux_layers(model.num_layers)
    if layers[-1] >= model.num_layers:
        raise ModelLoadError(
            f"the head reads the hidden state that enters layer {layers[-1]}, the target has "
            f"{model.num_layers} layers; deploy the head on the model it was trained on"
        )
    if len(layers) != config.num_aux:
        raise ModelLoadError(
            f"the head fuses {config.num_aux} hidden states and does not say which, a target of "
            f"{model.num_layers} layers gives {layers}; name them in the head's config.json"
        )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], source: str) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelLoadError(
            f"{name} in {source} has the shape {list(tensor.shape)}, config.json says "
            f"{list(shape)}; the two do not belong together"
        )


def _check_mapping(config: HeadConfig, d2t: Tensor, t2d: Tensor, source: str) -> None:
    if d2t.dtype != torch.int64 or t2d.dtype != torch.bool:
        raise ModelLoadError(
            f"d2t and t2d in {source} are {d2t.dtype} and {t2d.dtype}; they must be int64 and bool"
        )
    targets = torch.arange(len(d2t)) + d2t
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= config.vocab_size:
        raise ModelLoadError(
            f"d2t in {source} leads to token {low if low < 0 else high}, the vocabulary has "
            f"{config.vocab_size}; d2t must hold offsets: target = i + d2t[i]"
        )
    reached = torch.zeros(config.vocab_size, dtype=torch.bool)
    reached[targets] = True
    if int(reached.sum()) != len(targets):
        raise ModelLoadError(f"d2t in {source} maps two draft tokens to one; export the head again")
    if not torch.equal(reached, t2d):
        raise ModelLoadError(
            f"d2t and t2d in {source} name different tokens ({int(t2d.sum())} in t2d, "
            f"{len(targets)} in d2t); export the head again"
        )
