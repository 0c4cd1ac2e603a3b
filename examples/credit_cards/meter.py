"""The engine's own count of what speculation did, from the server's /metrics.

The engine reports about four times a second while it works and once a second while it is idle, so
a reading is late by that much. Who needs it exact lets the engine be idle first (`settled`).
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx
from prometheus_client.parser import text_string_to_metric_families

from quickmatch.core.speculation_counts import SpeculationCounts

SETTLE_S = 1.2  # longer than from one report of an idle engine to the next
_PREFIX = "quickmatch_speculation_"
_SUMS = {  # a metric's name -> the field that it is; labels by drafter are summed
    "verifications": "num_verified",
    "plain_decodes": "num_plain",
    "proposed_tokens": "num_proposed",
    "accepted_tokens": "num_accepted",
    "emitted_tokens": "num_emitted",
    "busy_seconds": "busy_s",
    "plain_seconds": "plain_s",
    "draft_seconds": "draft_s",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """Sums since the server's start; zeros where it does not speculate."""

    counts: SpeculationCounts
    num_from_head: int  # accepted tokens that the head drafted
    index_tokens: int


class Meter:
    """Reads one deployment's figures. Close it at the end."""

    def __init__(self, url: str, deployment: str) -> None:
        """url: of the API, ending in /v1; the metrics lie beside it."""
        self._url, self._deployment = urljoin(url, "/metrics"), deployment
        self._http = httpx.AsyncClient(trust_env=False)

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def read(self) -> Reading:
        """Return the newest report."""
        response = await self._http.get(self._url)
        return parse(response.raise_for_status().text, self._deployment)

    async def settled(self) -> Reading:
        """Return a report that holds all that was answered, if nobody asks meanwhile."""
        await asyncio.sleep(SETTLE_S)
        return await self.read()


def parse(text: str, deployment: str) -> Reading:
    """Read the figures of one deployment in Prometheus's text format."""
    sums = dict.fromkeys(_SUMS.values(), 0.0)
    num_from_head = index_tokens = 0
    for family in text_string_to_metric_families(text):
        name = family.name.removeprefix(_PREFIX)
        for sample in family.samples:
            if sample.labels.get("deployment") != deployment:
                continue
            if name in _SUMS:
                sums[_SUMS[name]] += sample.value
            if name == "index_tokens":
                index_tokens = int(sample.value)
            if name == "accepted_tokens" and sample.labels["drafter"] == "head":
                num_from_head = int(sample.value)
    return Reading(SpeculationCounts.model_validate(sums), num_from_head, index_tokens)
