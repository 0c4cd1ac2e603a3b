"""One choice's tokens as deltas of text.

Owns: what stands between the engine's tokens and `core.completion.Delta`: detokenizing, stop
strings, the text of logprobs, counting. It does not know sockets, HTTP or other choices.

Invariant: exactly one delta carries a finish reason, and it is the last. Tokens that arrive after
a stop string was complete are neither shown nor counted: several may be under way by then.
"""

from collections.abc import Sequence

from quickmatch.core.completion import Delta, FinishReason, TokenLogprob
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.text.detokenizer import make_detokenizer
from quickmatch.engine.text.stop import StopMatcher
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.engine.wire import Tokens

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "cancel": FinishReason.STOP,  # nobody listens any more
}


class TextStream:
    """Feed it every `Tokens` of one sequence until `is_finished`.

    A sequence that is finished here by a stop string still runs in the engine: close the engine's
    iterator then, which cancels it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        index: int = 0,
        context: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.num_tokens = 0  # completion tokens so far, the one that completed a stop included
        self.num_cached_tokens = 0
        self.num_accepted_prediction_tokens = 0
        self.num_rejected_prediction_tokens = 0
        self.is_finished = False
        self._tokenizer = tokenizer
        self._detokenizer = make_detokenizer(tokenizer, context)
        self._stop = StopMatcher(sampling.stop)

    def push(self, tokens: Tokens) -> Delta:
        """Return the delta that these tokens make; its text may be empty."""
        if self.is_finished:
            return Delta(index=self.index)
        self.num_cached_tokens += tokens.num_cached_tokens
        pieces: list[str] = []
        num_taken = 0
        for token_id in tokens.token_ids:
            num_taken += 1
            # A token that ended the sequence (EOS, stop_token_ids) counts and has no text.
            if tokens.finish_reason != "stop" or num_taken < len(tokens.token_ids):
                pieces.append(self._stop.push(self._detokenizer.push(token_id)))
                if self._stop.is_matched:
                    break
        if tokens.finish_reason is not None and not self._stop.is_matched:
            pieces.append(self._stop.push(self._detokenizer.flush()))
            pieces.append(self._stop.flush())
        self.num_tokens += num_taken
        # What a stop string cuts off was drafted in vain: at most the tokens taken were foretold.
        num_accepted = min(tokens.num_accepted_prediction_tokens, num_taken)
        self.num_accepted_prediction_tokens += num_accepted
        self.num_rejected_prediction_tokens += tokens.num_rejected_prediction_tokens
        reason = self._finish_reason(tokens)
        self.is_finished = reason is not None
        return Delta(
            index=self.index,
            text="".join(pieces),
            token_ids=tuple(tokens.token_ids[:num_taken]),
            logprobs=tuple(self._logprob(entry) for entry in tokens.logprobs[:num_taken]),
            finish_reason=reason,
        )

    def _finish_reason(self, tokens: Tokens) -> FinishReason | None:
        if self._stop.is_matched:
            return FinishReason.STOP
        if tokens.finish_reason is None:
            return None
        return _FINISH_REASONS[tokens.finish_reason]

    def _logprob(self, entry: list[tuple[int, float]]) -> TokenLogprob:
        text = self._tokenizer.token_text
        (token_id, logprob), *top = entry
        return TokenLogprob(
            token_id=token_id,
            token=text(token_id),
            logprob=logprob,
            top=tuple((i, text(i), value) for i, value in top),
        )
