"""May this request run here at all? Checked once at arrival, before anything is queued.

Owns: the limits that the model and the KV memory set to one request, and the words in which a
refusal is told. It does not know the other requests.

Invariant: a request that passes can run to its end when it runs alone, so that the scheduler
never holds one that cannot be served.
"""

from dataclasses import dataclass

from quickmatch.engine.wire import Generate


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not taken. `code` is what the fleet maps to an error class."""

    code: str | None
    message: str


def check_request(
    request: Generate, *, vocab_size: int, max_model_len: int, kv_capacity_tokens: int
) -> Refusal | None:
    """Return why `request` cannot be served, or None if it can."""
    prompt, params = request.prompt_token_ids, request.sampling
    if not prompt:
        return Refusal("invalid_request", "the prompt is empty; send at least one token")
    for token_id in (min(prompt), max(prompt), *params.logit_bias):
        if not 0 <= token_id < vocab_size:
            message = f"token id {token_id} is not in the vocabulary; allowed: 0 to "
            return Refusal("invalid_request", f"{message}{vocab_size - 1}")
    limit = min(max_model_len, kv_capacity_tokens)
    num_wanted = len(prompt) + (1 if params.max_tokens is None else params.max_tokens)
    if num_wanted <= limit:
        return None
    where = f"the model's context holds {max_model_len}"
    if kv_capacity_tokens < max_model_len:
        where += f" and the KV memory only {kv_capacity_tokens}"
    if len(prompt) >= limit:
        what, remedy = f"the prompt has {len(prompt)} tokens", "shorten the prompt"
    else:
        what = f"the prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}"
        remedy = "shorten the prompt or lower max_tokens"
    if kv_capacity_tokens < max_model_len:
        remedy += ", or serve with a higher kv_memory_fraction"
    return Refusal("context_length_exceeded", f"{what}, but {where}; {remedy}")
