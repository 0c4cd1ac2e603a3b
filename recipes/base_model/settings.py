"""Every setting of the recipe: the network, the curriculum, the optimizers."""

from __future__ import annotations

from dataclasses import dataclass, field

LOOKUPS = ("lookup", "several", "nth_item", "repeat", "mentioned")
ALL_TASKS = (
    *LOOKUPS, "reverse", "extreme", "to_json", "table_row", "verbalise",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSettings:
    """The shape of the network, in Llama's terms."""

    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_length: int = 2048


@dataclass(frozen=True)
class Phase:
    """A stretch of the curriculum: the rows of each step and what they hold.

    What `dense_share` and `text_share` leave over is chat tasks.
    """

    steps: int
    rows: int
    length: int
    dense_share: float = 0.0
    text_share: float = 0.0
    dense_vocab: int = 8192
    text_weight: float = 1.0
    tasks: tuple[str, ...] = ALL_TASKS


@dataclass(frozen=True)
class TrainSettings:
    """One run. The learning rate warms up, stays, and falls linearly to zero over `decay_share`."""

    model: ModelSettings = field(default_factory=ModelSettings)
    phases: tuple[Phase, ...] = (
        Phase(steps=150, rows=16, length=96, dense_share=1.0),
        Phase(steps=350, rows=12, length=160, dense_share=0.2, text_share=0.15, tasks=LOOKUPS),
        Phase(steps=1000, rows=10, length=256, dense_share=0.1, text_share=0.3, text_weight=0.6),
        Phase(steps=600, rows=6, length=512, text_share=0.5, text_weight=0.6),
        Phase(steps=300, rows=6, length=512, text_share=0.4, text_weight=0.35),
        Phase(steps=900, rows=6, length=512, dense_share=0.08, text_share=0.3, text_weight=0.35),
    )
    matrix_lr: float = 0.01
    other_lr: float = 0.003
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    warmup_steps: int = 20
    decay_share: float = 0.5
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    seed: int = 1
    max_train_tokens_a_source: int = 4_000_000
    text_shares: tuple[tuple[str, float], ...] = (
        ("dialogues", 0.22), ("docs", 0.2), ("facts_speeches", 0.22), ("t0_open", 0.1),
        ("gsm8k", 0.06), ("novels_eltec", 0.1), ("books_gutenberg", 0.1),
    )  # fmt: skip
    log_every: int = 20
    probe_every: int = 150
    checkpoint_every: int = 100

    @property
    def num_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise ValueError(f"step {step} lies {step} steps after the last phase")

    def lr_scale(self, step: int) -> float:
        """Warm-up, flat, then linearly to zero."""
        decay_steps = max(1, int(self.decay_share * self.num_steps))
        left = (self.num_steps - step) / decay_steps
        return min(1.0, (step + 1) / self.warmup_steps, left)
