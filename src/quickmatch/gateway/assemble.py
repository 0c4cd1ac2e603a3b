"""Putting a request's deltas together again: what is cached, traced and sent whole.

Invariant: `completion(i)` is what call i alone would give; `whole()` numbers the choices of all
calls as OpenAI does, prompt by prompt, and adds their usage up.
"""

from dataclasses import dataclass, field, replace

from quickmatch.core.completion import (
    Choice,
    Completion,
    Delta,
    FinishReason,
    TokenLogprob,
    Usage,
)


@dataclass(slots=True)
class _Parts:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Assembler:
    """Collects the items of every call of one request."""

    def __init__(self, num_calls: int, n: int) -> None:
        self._num_calls = num_calls
        self._n = n
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.has_begun = False
        self._parts = [[_Parts() for _ in range(self._n)] for _ in range(self._num_calls)]
        self._usages: list[Usage | None] = [None] * self._num_calls

    def add(self, call_number: int, item: Delta | Usage) -> None:
        """Take the next item of a call."""
        self.has_begun = True
        if isinstance(item, Usage):
            self._usages[call_number] = item
            return
        parts = self._parts[call_number][item.index]
        parts.texts.append(item.text)
        parts.token_ids.extend(item.token_ids)
        parts.logprobs.extend(item.logprobs)
        parts.finish_reason = item.finish_reason or parts.finish_reason

    def completion(self, call_number: int) -> Completion:
        """Return one call's answer so far."""
        choices = (
            Choice(
                index=i,
                text="".join(parts.texts),
                finish_reason=parts.finish_reason or FinishReason.STOP,
                token_ids=tuple(parts.token_ids),
                logprobs=tuple(parts.logprobs),
            )
            for i, parts in enumerate(self._parts[call_number])
        )
        return Completion(tuple(choices), self._usages[call_number] or Usage())

    def whole(self) -> Completion:
        """Return the answer to the request."""
        completions = [self.completion(i) for i in range(len(self._parts))]
        choices = tuple(
            replace(choice, index=number * self._n + choice.index)
            for number, completion in enumerate(completions)
            for choice in completion.choices
        )
        usages = [completion.usage for completion in completions]
        total = Usage(
            prompt_tokens=sum(u.prompt_tokens for u in usages),
            completion_tokens=sum(u.completion_tokens for u in usages),
            cached_tokens=sum(u.cached_tokens for u in usages),
            accepted_prediction_tokens=sum(u.accepted_prediction_tokens for u in usages),
            rejected_prediction_tokens=sum(u.rejected_prediction_tokens for u in usages),
        )
        return Completion(choices, total)
