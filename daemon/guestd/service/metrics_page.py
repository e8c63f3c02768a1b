"""The page /metrics: written on a thread of its own, once for all who wait for it, and not too often.

A thousand domains have tens of thousands of samples, and writing them holds the interpreter. Whoever may read the pages
may ask for this one all the time, so writing has a part of the time and no more.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client.exposition import choose_encoder

from guestd.telemetry.exposition import append_to_page
from guestd.telemetry.registry import Telemetry

# After a page that took a second to write, the next one is begun this many seconds later at the earliest.
REST_SHARE = 4.0
_OPENMETRICS = "application/openmetrics-text"


@dataclass(frozen=True, slots=True)
class Content:
    """The page as bytes, and what its format is called in HTTP."""

    text: bytes
    content_type: str


def is_openmetrics(accept: str) -> bool:
    """Whether a reader accepts OpenMetrics; the other format is Prometheus' own."""
    return any(each.partition(";")[0].strip() == _OPENMETRICS for each in accept.split(","))


class MetricsPage:
    """The page, in both formats."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics-page")
        self._turn = asyncio.Lock()
        self._next: dict[bool, asyncio.Task[Content]] = {}
        self._begin_at = 0.0

    async def get(self, is_openmetrics: bool) -> Content:
        """Write the page, from samples that are not older than this call; callers that wait share it."""
        task = self._next.get(is_openmetrics)
        if task is None:
            task = asyncio.create_task(self._write(is_openmetrics), name="metrics-page")
            self._next[is_openmetrics] = task
        return await asyncio.shield(task)  # it is others' too

    async def _write(self, is_openmetrics: bool) -> Content:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(self._begin_at - loop.time())
            # From here on a caller needs another page.
            del self._next[is_openmetrics]
            began = loop.time()
            content = await loop.run_in_executor(self._thread, self._render, is_openmetrics)
            ended = loop.time()
            self._begin_at = ended + REST_SHARE * (ended - began)
            return content

    def _render(self, is_openmetrics: bool) -> Content:
        encode, content_type = choose_encoder(f"{_OPENMETRICS}; version=1.0.0" if is_openmetrics else "")
        families = self._telemetry.render_families(is_openmetrics=is_openmetrics)
        return Content(append_to_page(encode(self._telemetry.registry), families), content_type)
