"""What comes back from a call: deltas of text, then the usage.

Every backend, embedded or remote, yields these; the gateway alone turns them into OpenAI JSON.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a choice ended. The values are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One emitted token, its log probability (natural log), and the most likely alternatives.

    The log probabilities are of the model's own distribution, before temperature and filters.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()  # (token_id, token, logprob), most likely first


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one choice. The last one of a choice carries `finish_reason`."""

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole call. `cached_tokens`: prompt tokens found in the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    accepted_prediction_tokens: int = 0  # of the completion, those that `prediction` foretold
    rejected_prediction_tokens: int = 0  # of the prediction, those that the model refuted

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole choice, put together from its deltas."""

    index: int
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: what is cached, traced and sent when the caller does not stream."""

    choices: tuple[Choice, ...]
    usage: Usage = field(default_factory=Usage)
