"""200 streams at once over the base and three adapters, one of them swapped in the run.

None is lost and none mixed up: every answer is one that its model, in some version that was live,
gives alone (greedy, float32).
"""

import asyncio
import time
from collections import Counter

import httpx
import openai

from tests.e2e.conftest import Server
from tests.e2e.tiny_model import make_adapter

NUM_CALLS, NUM_PROMPTS, MAX_TOKENS = 200, 10, 24
MODELS = ("tiny", "red", "green", "blue")
Answers = dict[tuple[str, int], str]


def prompt(number: int) -> str:
    return f"the card of applicant {number} is " + "good " * (number % 4)


async def ask(
    client: openai.AsyncOpenAI, model: str, number: int, begun: list[str] | None = None
) -> str:
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt(number)}],
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        extra_headers={"Cache-Control": "no-store"},
        extra_body={"ignore_eos": True},
    )
    parts: list[str] = []
    reasons: list[str | None] = []
    async for chunk in stream:
        if not parts and begun is not None:
            begun.append(model)
        parts.append(chunk.choices[0].delta.content or "")
        reasons.append(chunk.choices[0].finish_reason)
    assert reasons[-1] == "length"
    return "".join(parts)


async def alone(client: openai.AsyncOpenAI, models: tuple[str, ...]) -> Answers:
    """Return each model's answers, asked one after the other."""
    return {(m, i): await ask(client, m, i) for m in models for i in range(NUM_PROMPTS)}


async def test_200_streams_while_an_adapter_is_swapped(server: Server) -> None:
    limits = httpx.Limits(max_connections=NUM_CALLS, max_keepalive_connections=NUM_CALLS)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1",
        api_key="any",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=120),
    ) as client:
        old = await alone(client, MODELS)
        calls = [(MODELS[i % 4], i // 4 % NUM_PROMPTS) for i in range(NUM_CALLS)]
        began = time.monotonic()
        begun: list[str] = []
        asking = [
            asyncio.create_task(_late(client, i, *call, begun)) for i, call in enumerate(calls)
        ]
        while begun.count("red") < 5:  # some answers of the old version are under way
            await asyncio.sleep(0.01)
        path = make_adapter(server.folder / "red" / "2", seed=77)
        version = server.new_version("red", path)
        wanted = {"red": version, "green": 1, "blue": 1}
        await asyncio.to_thread(server.want_adapters, wanted)
        num_done = sum(task.done() for task in asking)
        answers = await asyncio.gather(*asking)
        took_s = time.monotonic() - began
        new = await alone(client, ("red",))
    versions = Counter()  # type: Counter[str]
    for call, answer in zip(calls, answers, strict=True):
        assert answer in (old[call], new.get(call)), call
        if call[0] == "red" and old[call] != new[call]:
            versions["new" if answer == new[call] else "old"] += 1
    print(f"200 streams in {took_s:.1f} s; {num_done} done at the swap; red: {dict(versions)}")
    assert num_done < NUM_CALLS
    assert versions["new"]
    assert versions["old"]


async def _late(
    client: openai.AsyncOpenAI, number: int, model: str, prompt_number: int, begun: list[str]
) -> str:
    """Ask; the last quarter arrives later, when the adapter is being swapped or has been."""
    if number >= NUM_CALLS * 3 // 4:
        while not begun:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02 * (number - NUM_CALLS * 3 // 4))
    return await ask(client, model, prompt_number, begun)
