"""The exact cache's key: a hash of everything that changes the answer, and of nothing else.

Owns what counts as the same call. In: tenant, the weights' fingerprint (model, version, origin,
engine settings), endpoint, messages or prompt, all sampling parameters, n, echo, tools, template
arguments, isolation key. Out: ids, streaming, metadata, the user field, the name that the model
was asked by, and the prediction: a draft is verified token by token, so it changes when an answer
is there and never what it is; likewise the deployment's speculation is no part of the fingerprint.
Invariant: two calls with equal keys may be given each other's answer.
"""

import hashlib
import json
from dataclasses import fields

from quickmatch.core.call import Call
from quickmatch.core.sampling import SamplingParams

KEY_FORMAT = 2  # raised when what is hashed changes, so that old entries are never read
_SAMPLING_FIELDS = tuple(f.name for f in fields(SamplingParams) if f.name != "grammar")


def cache_key(call: Call, fingerprint: str) -> str:
    """Return the key of a call answered by the weights of that fingerprint, 64 hex digits."""
    grammar = call.sampling.grammar
    parts = (
        KEY_FORMAT,
        call.tenant,
        fingerprint,
        call.endpoint,
        call.messages,
        call.prompt,
        [getattr(call.sampling, name) for name in _SAMPLING_FIELDS],
        None if grammar is None else (grammar.kind, grammar.text),
        call.n,
        call.echo,
        call.tools,
        call.chat_template_kwargs,
        call.isolation_key,
    )
    return _hash(parts)


def function_key(name: str, arguments: object) -> str:
    """Return the key of a function call. Raises TypeError for what JSON cannot say."""
    return _hash((KEY_FORMAT, "function", name, arguments))


def is_deterministic(sampling: SamplingParams) -> bool:
    """Return whether the same call gives the same answer: greedy, or with a seed."""
    return sampling.is_greedy or sampling.seed is not None


def _hash(parts: object) -> str:
    # The standard library's JSON: it takes integers of any size and half surrogate pairs too.
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
