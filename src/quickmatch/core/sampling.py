"""Sampling parameters: what a caller may ask of the next token, validated once.

The names are OpenAI's, with the additions that vLLM's users know (top_k, min_p,
repetition_penalty, ignore_eos). Text stop strings are here too, but the engine works on tokens
alone: stop strings are matched where text is made (engine/text).
"""

from dataclasses import dataclass, field

from quickmatch.core.errors import InvalidRequest
from quickmatch.core.grammar import Grammar

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. Raises InvalidRequest on a value out of range."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: drawn by the engine, so that runs differ
    max_tokens: int | None = None  # None: up to the end of the context
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the sampled token's and the k most likely
    grammar: Grammar | None = None  # what the output must match; it says when the text may end

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidRequest(f"{name} is {value}; allowed: {low} to {high}", param=name)
        if self.top_p == 0.0:
            raise InvalidRequest("top_p is 0; it must be above 0", param="top_p")
        if self.repetition_penalty == 0.0:
            raise InvalidRequest(
                "repetition_penalty is 0; it must be above 0", param="repetition_penalty"
            )
        if len(self.stop) > MAX_STOP_STRINGS or any(not s for s in self.stop):
            raise InvalidRequest(
                f"stop holds {len(self.stop)} strings; at most {MAX_STOP_STRINGS}, none empty",
                param="stop",
            )
        bad = [b for b in self.logit_bias.values() if not -100 <= b <= 100]
        if bad:
            raise InvalidRequest(
                f"logit_bias holds {bad[0]}; allowed: -100 to 100", param="logit_bias"
            )
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise InvalidRequest(
                f"{name} cannot go with structured output, whose grammar says when the text "
                "ends; leave one of them out",
                param=name,
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the next token's logits."""
        return (
            self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 10.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, 1 << 31),
    ("min_p", 0.0, 1.0),
    ("frequency_penalty", -2.0, 2.0),
    ("presence_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 10.0),
    ("max_tokens", 1, 1 << 31),
    ("min_tokens", 0, 1 << 31),
    ("logprobs", 0, MAX_LOGPROBS),
    ("seed", -(1 << 63), (1 << 63) - 1),
)
