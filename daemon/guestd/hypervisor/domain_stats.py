"""Statistics of every running domain, each polled by its own call with a deadline.

A hung QEMU blocks a statistics call forever, and libvirtd serves only a few calls per connection at a time. The poller
therefore has its own connection and replaces it before hung calls can use it up. A domain whose call has not returned
is not polled again and is the only one reported as timed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog

from guestd.core.errors import SourceLost
from guestd.hypervisor.blocking import BlockingCalls, call_in_loop
from guestd.hypervisor.connection import read_statistics
from guestd.hypervisor.domains import Domain
from guestd.hypervisor.opening import abandoned_on_failure, open_read_only, start_closing
from guestd.telemetry.domains import Statistics, build_families
from guestd.telemetry.exposition import Family, prerender
from guestd.telemetry.registry import VmMetrics

log = structlog.get_logger()

POLL_SECONDS = 15.0
DEADLINE_SECONDS = 3.0
MAX_CONCURRENT_CALLS = 2
# libvirtd serves five calls of a connection at a time.
MAX_STUCK_PER_CONNECTION = 3
MAX_STUCK_CALLS = 32


class DomainStatsPoller:
    """Polls the statistics of one libvirt's running domains.

    `get_domains` returns the domains; `read` reads the statistics of one on a connection, blocking.
    """

    def __init__(
        self,
        uri: str,
        get_domains: Callable[[], Sequence[Domain]],
        *,
        metrics: VmMetrics,
        read: Callable[[Any, UUID], Statistics] = read_statistics,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._uri = uri
        self._read = read
        self._deadline_seconds = deadline_seconds
        self._get_domains = get_domains
        self._calls = BlockingCalls(
            "libvirt-statistics", max_concurrent=MAX_CONCURRENT_CALLS, max_stuck=MAX_STUCK_CALLS, metrics=metrics
        )
        self._connection: Any = None
        self._stuck_on_connection = 0
        self._pending: set[UUID] = set()
        self._latest: Mapping[str, Statistics] = {}
        self._timed_out: frozenset[str] = frozenset()
        self._families: list[Family] | None = None

    @property
    def stuck(self) -> int:
        """Abandoned calls that have not returned."""
        return self._calls.stuck

    def build_families(self) -> list[Family]:
        """List the metrics of the last poll; formatted at the first scrape after it."""
        cached = self._families
        if cached is None:
            cached = self._families = [prerender(family) for family in build_families(self._latest, self._timed_out)]
        return cached

    async def run(self, observed: asyncio.Event) -> None:
        """Poll all domains at an interval; starts when `observed` is set (the first snapshot), never returns."""
        await observed.wait()
        while True:
            await self.poll_once()
            await asyncio.sleep(POLL_SECONDS)

    async def poll_once(self) -> None:
        """Poll every running domain once, except those whose last call still hangs."""
        running = [domain for domain in self._get_domains() if domain.is_active]
        found: dict[str, Statistics] = {}
        hanging = {domain.name for domain in running if domain.uuid in self._pending}
        queue = [domain for domain in running if domain.uuid not in self._pending]

        async def poll_queue() -> None:
            while queue:
                domain = queue.pop()
                statistics = await self._read_domain(domain.uuid)
                if statistics is None:
                    hanging.add(domain.name)
                elif statistics:
                    found[domain.name] = statistics

        try:
            await self._connect()
            await asyncio.gather(*(poll_queue() for _ in range(MAX_CONCURRENT_CALLS)))
        except SourceLost as exc:
            self._disconnect()
            log.debug("no domain statistics in this poll, retrying at the next", error=str(exc))
        self._latest, self._timed_out, self._families = found, frozenset(hanging), None

    async def _connect(self) -> None:
        if self._connection is None or self._stuck_on_connection >= MAX_STUCK_PER_CONNECTION:
            self._disconnect()
            with abandoned_on_failure() as abandoned:
                self._connection = await self._calls.run(
                    lambda: open_read_only(self._uri, abandoned), deadline_seconds=DEADLINE_SECONDS
                )
            self._stuck_on_connection = 0

    def _disconnect(self) -> None:
        if self._connection is not None:
            start_closing(self._connection)
            self._connection = None

    async def _read_domain(self, uuid: UUID) -> Statistics | None:
        """Read a domain's statistics; empty if it no longer exists, None if it does not answer."""
        await self._connect()
        connection, loop = self._connection, asyncio.get_running_loop()
        self._pending.add(uuid)

        def read() -> Statistics:
            try:
                return self._read(connection, uuid)
            finally:
                call_in_loop(loop, self._pending.discard, uuid)

        try:
            return await self._calls.run(read, deadline_seconds=self._deadline_seconds)
        except SourceLost:
            if uuid not in self._pending:  # the call returned: libvirt failed, not the domain
                raise
            self._stuck_on_connection += 1
            return None
