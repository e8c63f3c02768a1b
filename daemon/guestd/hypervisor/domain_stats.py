"""Statistics of every domain, each asked for by itself, with a deadline.

One hung QEMU blocks whoever asks for its statistics for ever, and libvirtd serves but a few calls of a connection at a
time. So this has a connection of its own, which is given up for another before hung calls can fill it; a domain whose
call has not come back is not asked again, and shown as timed out, alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog

from guestd.core.errors import SourceLost
from guestd.hypervisor import connection as hypervisor
from guestd.hypervisor.blocking import BlockingCalls, call_in_loop
from guestd.hypervisor.domains import Domain
from guestd.telemetry.domains import Family, Statistics, families
from guestd.telemetry.exposition import written

log = structlog.get_logger()

POLL_SECONDS = 15.0
DEADLINE_SECONDS = 3.0
MAX_CONCURRENT_CALLS = 2
# libvirtd serves five calls of a connection at a time.
MAX_STUCK_PER_CONNECTION = 3
MAX_STUCK_CALLS = 32


class DomainStatsPoller:
    """The latest statistics of one libvirt's running domains.

    `domains` gives those that there are; `read` asks for one on a connection, blocking.
    """

    def __init__(
        self,
        uri: str,
        domains: Callable[[], Sequence[Domain]],
        *,
        gave_up: Callable[[], None],
        took: Callable[[float], None] = lambda _: None,
        read: Callable[[Any, UUID], Statistics] = hypervisor.read_statistics,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._uri = uri
        self._read = read
        self._deadline_seconds = deadline_seconds
        self._domains = domains
        self._calls = BlockingCalls(
            "libvirt-statistics", at_once=MAX_CONCURRENT_CALLS, stuck_cap=MAX_STUCK_CALLS, gave_up=gave_up, took=took
        )
        self._connection: Any = None
        self._stuck_here = 0
        self._asked: set[UUID] = set()
        self._latest: Mapping[str, Statistics] = {}
        self._timed_out: frozenset[str] = frozenset()
        self._shown: list[Family] | None = None

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not come back."""
        return self._calls.stuck

    def families(self) -> list[Family]:
        """What the last round has found, as metrics; written when somebody asks for the first time."""
        shown = self._shown
        if shown is None:
            shown = self._shown = [written(family) for family in families(self._latest, self._timed_out)]
        return shown

    async def run(self, looked: asyncio.Event) -> None:
        """Ask all domains again and again, for ever; first when it is known which there are: `looked` is set then."""
        await looked.wait()
        while True:
            await self.round()
            await asyncio.sleep(POLL_SECONDS)

    async def round(self) -> None:
        """Ask every running domain once, unless its last call still hangs."""
        wanted = [domain for domain in self._domains() if domain.is_active]
        found: dict[str, Statistics] = {}
        hanging = {domain.name for domain in wanted if domain.uuid in self._asked}
        queue = [domain for domain in wanted if domain.uuid not in self._asked]

        async def ask() -> None:
            while queue:
                domain = queue.pop()
                statistics = await self._ask(domain.uuid)
                if statistics is None:
                    hanging.add(domain.name)
                elif statistics:
                    found[domain.name] = statistics

        try:
            await self._connect()
            await asyncio.gather(*(ask() for _ in range(MAX_CONCURRENT_CALLS)))
        except SourceLost as exc:
            self._connection = None
            log.debug("statistics of domains are not to be had", error=str(exc))
        self._latest, self._timed_out, self._shown = found, frozenset(hanging), None

    async def _connect(self) -> None:
        if self._connection is None or self._stuck_here >= MAX_STUCK_PER_CONNECTION:
            self._connection = await self._calls.run(
                lambda: hypervisor.open_read_only(self._uri), deadline_seconds=DEADLINE_SECONDS
            )
            self._stuck_here = 0

    async def _ask(self, uuid: UUID) -> Statistics | None:
        """A domain's statistics, empty when it is gone; None when it does not answer."""
        await self._connect()
        connection, loop = self._connection, asyncio.get_running_loop()
        self._asked.add(uuid)

        def answered() -> Statistics:
            try:
                return self._read(connection, uuid)
            finally:
                call_in_loop(loop, self._asked.discard, uuid)

        try:
            return await self._calls.run(answered, deadline_seconds=self._deadline_seconds)
        except SourceLost:
            if uuid not in self._asked:  # it came back, and libvirt is what is lost
                raise
            self._stuck_here += 1
            return None
