"""One call for a completion, as every layer from the gateway down to a backend sees it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from quickmatch.core.sampling import SamplingParams

Endpoint = Literal["chat", "completion"]
Message = dict[str, Any]  # {"role": …, "content": …, …}, as OpenAI's API spells it

MAX_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A validated request. Frozen: layers that need more keep it beside, not in here."""

    id: str
    endpoint: Endpoint
    model: str  # as the caller spelled it: "name", or "adapter#deployment"
    messages: tuple[Message, ...] = ()  # for endpoint "chat"
    prompt: str | tuple[int, ...] = ""  # for endpoint "completion": text or token ids
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    echo: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    prediction: str = ""  # what the caller expects as the answer; makes it faster, never different
    tenant: str = "default"
    isolation_key: str = ""  # calls share prefixes, answers and past outputs only with the same key
    trace_id: str = ""
