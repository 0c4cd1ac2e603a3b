"""What a single caller sees: first calls, then the same calls again from the exact cache."""

from collections.abc import Sequence

from examples.credit_cards.calls import Answer, Client, told
from examples.credit_cards.findings import Memory, Speed
from examples.credit_cards.plan import ADAPTER, BASE
from examples.credit_cards.product import Product, StageError
from examples.credit_cards.prompts import Message
from examples.credit_cards.screen import Screen
from quickmatch.store.documents import Deployment, Model
from quickmatch.store.protocol import require


async def measure_speed(client: Client, prompts: Sequence[list[Message]], screen: Screen) -> Speed:
    """Ask each prompt once, streaming, then once more. Raises StageError if the cache fails."""
    first: list[Answer] = []
    cached: list[Answer] = []
    with screen.bar("calls, one at a time", 2 * len(prompts)) as bar:
        try:
            for prompt in prompts:
                first.append(await client.stream(ADAPTER, prompt))
                bar.advance()
            for prompt in prompts:
                cached.append(await client.whole(ADAPTER, prompt))
                bar.advance()
        except Exception as error:
            raise StageError(f"a call to {ADAPTER} failed: {told(error)}") from error
    _check(first, cached)
    return Speed(
        first_s=[answer.total_s for answer in first],
        ttft_s=[answer.ttft_s for answer in first],
        cached_s=[answer.total_s for answer in cached],
        tokens_per_s=sum(a.num_tokens for a in first) / sum(a.total_s for a in first),
    )


def read_memory(product: Product, adapter: Model) -> Memory:
    """Read from the deployment what its engine takes."""
    info = require(product.store, Deployment, BASE).engine_info
    return Memory(
        engine_rss=int(info.get("stats", {}).get("rss_bytes", 0)),
        model=int(info.get("model_bytes", 0)),
        kv_cache=int(info.get("kv_bytes", 0)),
        adapter=adapter.size_bytes,
    )


def _check(first: Sequence[Answer], cached: Sequence[Answer]) -> None:
    """The figures would mean nothing if the calls were not what they are taken for."""
    hits = sum(answer.cache == "hit" for answer in first)
    if hits:
        raise StageError(f"{hits} of {len(first)} first calls came from the cache")
    misses = [b for a, b in zip(first, cached, strict=True) if b.cache != "hit" or a.text != b.text]
    if misses:
        raise StageError(
            f"{len(misses)} of {len(cached)} repeated calls were not the cached answer; the first "
            f"was marked {misses[0].cache!r}"
        )
