"""The target writes answers to prompts, in this process, by the engine that serves.

Owns the queueing of many prompts and what becomes of the tokens. Knows no rows and no training.
"""

from collections import deque
from collections.abc import Callable, Sequence

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.engine import Engine
from quickmatch.engine.wire import Generate


def write_answers(
    engine: Engine,
    prompts: Sequence[list[int]],
    *,
    adapter: str | None,
    temperature: float,
    max_tokens: int,
    max_length: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], bool] | None = None,
) -> list[list[int]]:
    """Return the answer's tokens of each prompt, the token that ended it included.

    max_tokens: of an answer; max_length: of prompt and answer together.
    on_step: called after each step with the number of finished answers; True ends the writing,
    and what is unfinished then is given as it is. Raises ConfigError if a prompt is refused.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    waiting, num_done = deque(enumerate(prompts)), 0
    while waiting or engine.has_work:
        while waiting and not engine.scheduler.is_full:
            index, prompt = waiting.popleft()
            room = max_tokens
            if max_length is not None:
                room = min(room, max_length - len(prompt))
            params = SamplingParams(temperature=temperature, max_tokens=room, seed=seed + index)
            refused = engine.add(
                Generate(
                    request_id=str(index),
                    prompt_token_ids=prompt,
                    sampling=params,
                    adapter=adapter,
                )
            )
            if refused is not None:
                raise ConfigError(f"the target refuses prompt {index + 1}: {refused.error}")
        for event in engine.step():
            answers[int(event.request_id)] += event.token_ids
            num_done += event.finish_reason is not None
        if on_step is not None and on_step(num_done):
            break
    return answers
