"""The engine: sequences in, tokens out. One `step()` is schedule, run, postprocess.

Owns: what a request is allowed to be, and when a sequence ends. It does not know HTTP, text,
sockets or tensors: the runner behind protocol.py computes, and `process.py` talks.

Invariant: every sequence that `add` accepts ends exactly once, with one `Tokens` that carries a
`finish_reason`; what `add` refuses ends with the `Tokens` that `add` returns.
"""

import random
from functools import partial
from typing import Any

import msgspec

from quickmatch.core.clock import Clock, monotonic
from quickmatch.core.errors import ConfigError, InvalidRequest, QuickmatchError
from quickmatch.engine.admission import Refusal, check_request
from quickmatch.engine.batch import Sampled, SampleState, Span, StepResult
from quickmatch.engine.blocks import BlockAllocator, root_digest
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine_adapters import EngineAdapters
from quickmatch.engine.memory_watch import MemoryWatch
from quickmatch.engine.protocol import Runner
from quickmatch.engine.reader import Missing
from quickmatch.engine.scheduler import Scheduler, Step
from quickmatch.engine.sequence import Sequence
from quickmatch.engine.speculation.scopes import scope_of, traffic_of
from quickmatch.engine.speculation.speculator import NO_PREDICTION, Speculator
from quickmatch.engine.wire import Generate, SpeculationStats, Stats, Tokens


class Engine:
    """Single-threaded. Call `step` while `has_work`; commands go between two steps."""

    def __init__(self, runner: Runner, config: EngineConfig, *, clock: Clock = monotonic) -> None:
        self.runner = runner
        self.num_steps = 0
        self._num_sequences = 0
        self._num_swaps = 0
        self._last_swap_s = 0.0
        self._eos_token_ids = tuple(runner.eos_token_ids)
        self._max_len = runner.max_model_len
        if runner.kv_limit is None:
            self._max_len = min(self._max_len, runner.num_blocks * runner.block_size)
        self._seeds = random.Random(config.seed)
        self._clock = clock
        self._adapters = EngineAdapters(runner)
        self.scheduler = Scheduler(
            BlockAllocator(
                runner.num_blocks, runner.block_size, prefix_caching=config.enable_prefix_caching
            ),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_queue_len=config.max_queue_len,
            kv_limit=runner.kv_limit,
            clock=clock,
        )
        self.speculator: Speculator | None = None
        self._memory = MemoryWatch(
            config.min_free_memory_bytes, runner.free_memory_bytes, clock=clock
        )
        self._is_resting = False  # the speculator, in this step
        if config.speculation.drafters:
            self.speculator = Speculator(config.speculation, runner, self.scheduler, clock=clock)

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return self.scheduler.num_live > 0

    def step(self) -> list[Tokens]:
        """Run one step and return the new tokens. Call it only while `has_work`."""
        if self.speculator is None:
            step = self.scheduler.schedule()
            result = self.runner.run(step.batch)
            return self._postprocess(step, result)
        started = self._clock()
        self._is_resting = self.speculator.rests()
        if self._is_resting:
            return self._rest(self.speculator, started)
        drafts = self.speculator.propose()
        drafted = self._clock()
        step = self.scheduler.schedule(drafts)
        result = self.runner.run(step.batch)
        events = self._postprocess(step, result)
        self.speculator.stepped(
            step,
            draft_s=drafted - started,
            step_s=self._clock() - drafted,
            told_s=result.told_s,
            num_emitted=sum(len(event.token_ids) for event in events),
        )
        return events

    def _rest(self, speculator: Speculator, started: float) -> list[Tokens]:
        """Run a step without drafts, and with nothing done for them."""
        step = self.scheduler.schedule()
        result = self.runner.run(step.batch)
        events = self._postprocess(step, result)
        speculator.rested(step, step_s=self._clock() - started, told_s=result.told_s)
        return events

    # ---- requests

    def add(self, request: Generate) -> Tokens | None:
        """Queue a request; return its final `Tokens` at once if it is refused, else None."""
        refusal = self._check(request)
        if refusal is not None:
            return Tokens(
                request_id=request.request_id,
                token_ids=[],
                finish_reason="error",
                error=refusal.message,
                error_code=refusal.code,
            )
        sequence = self._new_sequence(request)
        self.scheduler.add(sequence)
        if self.speculator is not None:
            self.speculator.started(sequence, request.prediction_token_ids)
        return None

    def cancel(self, request_id: str) -> Tokens | None:
        """End a sequence in whatever state; return its final `Tokens`, None if unknown."""
        sequence = self.scheduler.find(request_id)
        if sequence is None:
            return None
        self._finish(sequence)
        return Tokens(request_id=request_id, token_ids=[], finish_reason="cancel")

    def failures(self, message: str) -> list[Tokens]:
        """Return an error end for every live sequence: for after a step that threw.

        What such a step left behind is not to be trusted, so the engine is of no use afterwards.
        """
        return [
            Tokens(request_id=s.request_id, token_ids=[], finish_reason="error", error=message)
            for s in self.scheduler
        ]

    def missing(self, request: Generate) -> Missing | None:
        """Return what is better read beside the steps before a request is added; None: nothing."""
        if self.scheduler.is_full:  # it is refused at once
            return None
        adapter, grammar = request.adapter, request.sampling.grammar
        path = None if adapter is None else self._adapters.path_to_read(adapter)
        if adapter is not None and path is not None:
            read = partial(self.runner.read_adapter, path)
            take = partial(self._adapters.take_in, adapter, path)
            return Missing(adapter, read, take, room=self._adapters.room_for(adapter))
        if grammar is not None and not self.runner.grammars.has(grammar):
            grammars = self.runner.grammars
            return Missing(grammar, partial(grammars.read, grammar), partial(grammars.put, grammar))
        return None

    # ---- adapters

    def load_adapter(self, adapter: str, path: str, weights: Any = None) -> dict[str, Any]:
        """Load an adapter now; requests may name it from here on. Raises ConfigError.

        weights: what the runner has read of it, if it has.
        """
        return self._adapters.load(adapter, path, weights)

    def unload_adapter(self, adapter: str) -> dict[str, Any]:
        """Refuse new requests for it; forget it once those in flight are done.

        Returns {"num_sequences": how many still hold it}. Raises ConfigError if it is unknown.
        """
        num_sequences = self._adapters.unload(adapter)
        if self.speculator is not None:
            self.speculator.by_adapter.forget(adapter)
        return {"num_sequences": num_sequences}

    # ---- drafts

    def swap_draft(self, adapter: str, draft: str, head: Any) -> dict[str, Any]:
        """Draft with a head that the runner has read, from the next step on. Raises ConfigError.

        adapter: version id of the loaded adapter that it is for; "": base. Its weights may be on
        disk only: the head waits for them.
        Returns {"swap_s": the pause that it made between two steps}.
        """
        if self.speculator is None:
            raise ConfigError("speculation is off; allow drafters in the deployment's settings")
        if adapter and not self._adapters.is_available(adapter):
            raise ConfigError(self._adapters.why_not(adapter))
        started = self._clock()
        self.runner.put_draft(adapter, draft, head)
        self.speculator.heads_changed(has_heads=True)
        self._num_swaps += 1
        self._last_swap_s = self._clock() - started
        return {"swap_s": self._last_swap_s}

    def unload_draft(self, adapter: str) -> dict[str, Any]:
        """Forget the head of an adapter. Raises ConfigError if there is none."""
        self.runner.unload_draft(adapter)
        if self.speculator is not None:
            self.speculator.heads_changed(has_heads=bool(self.runner.draft_versions))
        return {}

    def remember(
        self,
        tenant: str,
        adapter: str | None,
        outputs: list[list[int]],
        *,
        isolation_key: str = "",
    ) -> None:
        """Put past outputs, oldest first, into the suffix index."""
        if self.speculator is not None:
            self.speculator.remember(scope_of(tenant, adapter, isolation_key), outputs)

    # ---- inside

    def _check(self, request: Generate) -> Refusal | None:
        if self.scheduler.find(request.request_id) is not None:
            return Refusal(None, f"request {request.request_id!r} is running already")
        if self.scheduler.is_full:
            return Refusal(
                "queue_full",
                f"{self.scheduler.num_live} requests are running or waiting, which is all that "
                "max_num_seqs and max_queue_len allow; try again in a moment",
            )
        if self._look_at_memory():
            return Refusal("memory_low", f"{self._memory.words}; try again in a moment")
        if request.adapter is not None and not self._adapters.is_available(request.adapter):
            return Refusal("adapter_not_found", self._adapters.why_not(request.adapter))
        refusal = check_request(
            request,
            vocab_size=self.runner.vocab_size,
            max_model_len=self.runner.max_model_len,
            kv_capacity_tokens=self._max_len,
        )
        return refusal or self._bring_missing(request)

    def _bring_missing(self, request: Generate) -> Refusal | None:
        """Read what a request needs, if nobody has beside the steps."""
        try:
            while (missing := self.missing(request)) is not None:
                missing.take(missing.read())
        except QuickmatchError as error:
            code = "invalid_request" if isinstance(error, InvalidRequest) else None
            return Refusal(code, error.message)
        return None

    def _look_at_memory(self) -> bool:
        is_low = self._memory.look()
        self.scheduler.set_frugal(is_low)
        return is_low

    def _new_sequence(self, request: Generate) -> Sequence:
        params, prompt = request.sampling, request.prompt_token_ids
        version, row = self._adapters.take(request.adapter)
        eos_token_ids = () if params.ignore_eos else self._eos_token_ids
        max_len = self._max_len
        if params.max_tokens is not None:
            max_len = len(prompt) + params.max_tokens
        self._num_sequences += 1
        return Sequence(
            request_id=request.request_id,
            id=self._num_sequences,
            token_ids=list(prompt),
            sample=SampleState(
                params=params,
                seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
                prompt_token_ids=prompt,
                eos_token_ids=(*eos_token_ids, *params.stop_token_ids),
                grammar=self.runner.grammars.start(params.grammar) if params.grammar else None,
            ),
            max_len=max_len,
            root=root_digest(version, request.isolation_key),
            arrival_s=self._clock(),
            adapter=request.adapter,
            adapter_row=row,
            scope=scope_of(request.tenant, request.adapter, request.isolation_key),
            traffic=traffic_of(request.tenant, request.adapter),
        )

    def _postprocess(self, step: Step, result: StepResult) -> list[Tokens]:
        """Keep what was computed, append what was chosen, end what is done."""
        self.num_steps += 1
        events: list[Tokens] = []
        for sequence, span, sampled in zip(
            step.sequences, step.batch.spans, result.sampled, strict=True
        ):
            if sampled is None:
                self.scheduler.advance(sequence, span.num_tokens)
            else:
                events.append(self._take(sequence, span, sampled))
        return events

    def _take(self, sequence: Sequence, span: Span, sampled: Sampled) -> Tokens:
        """Append a sequence's tokens up to its end, and end it there."""
        num_before = sequence.num_output_tokens
        token_ids, reason = _up_to_end(sequence, sampled.token_ids)
        sequence.extend(token_ids)
        num_kept = span.num_tokens
        if span.tree is not None:
            num_kept = min(1 + len(sampled.accepted), len(token_ids))
        is_decode = num_before > 0 and (span.tree is not None or span.num_tokens == 1)
        self.scheduler.advance(sequence, num_kept, is_decode=is_decode)
        if is_decode and self.speculator is not None:
            counts = self.speculator.by_adapter
            counts.add(sequence.adapter, span.tree, len(sampled.accepted), len(token_ids))
        verdict = NO_PREDICTION
        if self.speculator is not None and not self._is_resting:
            verdict = self.speculator.verified(sequence, span.tree, sampled, token_ids)
        grammar = sequence.sample.grammar
        error = None if grammar is None else grammar.error
        if error is not None:
            reason, error = "error", f"the output cannot be matched any further: {error}"
        if reason is not None:
            self._finish(sequence)
        is_first = num_before == 0
        queue_s = (sequence.first_scheduled_s or 0.0) - sequence.arrival_s if is_first else 0.0
        return Tokens(
            request_id=sequence.request_id,
            token_ids=token_ids,
            logprobs=sampled.logprobs[: len(token_ids)],
            finish_reason=reason,
            error=error,
            error_code=None if error is None else "invalid_request",
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
            queue_s=queue_s,
            num_accepted_prediction_tokens=verdict.num_accepted,
            num_rejected_prediction_tokens=verdict.num_rejected,
        )

    def _finish(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        if self.speculator is not None:
            self.speculator.ended(sequence)
        self._adapters.give_back(sequence.adapter)

    def stats(self, *, step_s: float = 0.0, rss_bytes: int = 0) -> Stats:
        """Return the engine's figures now; the caller measures `step_s` and `rss_bytes`."""
        scheduler, counters = self.scheduler, self.scheduler.counters
        return Stats(
            is_memory_low=self._look_at_memory(),
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks_used=scheduler.blocks.num_used,
            num_blocks=scheduler.blocks.num_blocks,
            num_preempted=counters.num_preempted,
            num_prefill_tokens=counters.num_prefill_tokens,
            num_decode_tokens=counters.num_decode_tokens,
            num_prefix_hit_tokens=counters.num_prefix_hit_tokens,
            num_evicted_tokens=counters.num_evicted_tokens,
            num_steps=self.num_steps,
            step_s=step_s,
            rss_bytes=rss_bytes,
            adapters=self._adapters.available,
            speculation=self._speculation_stats(),
        )

    def _speculation_stats(self) -> SpeculationStats | None:
        if self.speculator is None:
            return None
        return msgspec.structs.replace(
            self.speculator.stats(),
            drafts=self.runner.draft_versions,
            num_swaps=self._num_swaps,
            last_swap_s=self._last_swap_s,
        )


def _up_to_end(sequence: Sequence, token_ids: list[int]) -> tuple[list[int], str | None]:
    """Return those of the tokens that a sequence still takes, and why it ends with the last."""
    room = sequence.max_len - len(sequence.token_ids)
    taken = token_ids[:room]
    for place, token_id in enumerate(taken, 1):
        if token_id in sequence.sample.eos_token_ids:
            return taken[:place], "stop"
    return taken, "length" if len(taken) == room else None
