"""What an operator may say about speculation. The defaults need no thought: the controller picks.

Loads no torch: the fleet and the command line read it too.
"""

from dataclasses import dataclass

from quickmatch.core.errors import ConfigError

DRAFTERS = ("prediction", "suffix", "grammar", "head", "draft_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """Settings of one engine's speculation."""

    drafters: tuple[str, ...] = DRAFTERS  # those allowed; () turns speculation off
    draft_model: str = ""  # folder of a small model with the same tokenizer
    max_draft_tokens: int = 24  # nodes of one sequence's tree in one step
    max_depth: int = 16  # of that, in a line
    suffix_max_tokens: int = 1_000_000  # past outputs remembered, over all tenants
    suffix_min_confidence: float = 0.05
    # A token is verified only if it is expected to be accepted this likely. Less drafts more: up
    # to a fifth faster where rows are nearly free (one caller), with much more work thrown away.
    min_path_probability: float = 0.5
    is_adaptive: bool = True  # False: draft as deep as allowed whatever it costs (for comparison)
    calibration_s: float = 0.4  # at most so long is spent at start to measure what a step costs

    def __post_init__(self) -> None:
        unknown = [name for name in self.drafters if name not in DRAFTERS]
        if unknown:
            raise ConfigError(
                f"speculation.drafters holds {unknown[0]!r}; known: {', '.join(DRAFTERS)}"
            )
        for name in ("max_draft_tokens", "max_depth", "suffix_max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"speculation.{name} is {getattr(self, name)}; at least 1")
        for name in ("suffix_min_confidence", "min_path_probability"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"speculation.{name} is {getattr(self, name)}; it must be above 0, at most 1"
                )
