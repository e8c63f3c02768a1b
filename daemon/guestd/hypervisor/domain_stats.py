"""Statistics of every running domain, each polled by its own call with a deadline.

A hung QEMU blocks a statistics call forever, and libvirtd serves only a few calls per connection at a time. The poller
therefore has its own connection and replaces it before hung calls can use it up. A domain whose call has not returned
is not polled again and is the only one reported as timed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from guestd.core.bugs import BugLog
from guestd.core.errors import SourceLost
from guestd.core.tasks import unwrapping_task_group, warn_once
from guestd.hypervisor.blocking import BlockingCalls, TooManyStuck, call_in_loop
from guestd.hypervisor.connection import abandoned_on_failure, open_read_only, start_closing
from guestd.hypervisor.domains import Domain
from guestd.telemetry.domains import Statistics, build_families
from guestd.telemetry.exposition import Family, prerender
from guestd.telemetry.registry import VmMetrics

try:
    import libvirt
except ImportError:  # guestd[libvirt] is not installed; nothing is polled then
    libvirt = None

POLL_SECONDS = 15.0
DEADLINE_SECONDS = 3.0
MAX_CONCURRENT_CALLS = 2
# libvirtd serves five calls of a connection at a time.
MAX_STUCK_PER_CONNECTION = 3
MAX_STUCK_CALLS = 32


@dataclass(slots=True)
class _CountedConnection:
    """A connection of the poller, and how many of its calls timed out."""

    handle: Any
    stuck: int = 0


@dataclass(frozen=True)
class _Poll:
    """What one poll found. One object, because the thread that serves metrics reads it while the next poll runs."""

    statistics: Mapping[str, Statistics]
    timed_out: frozenset[str]

    @cached_property
    def families(self) -> list[Family]:
        """The metrics, formatted at the first scrape."""
        return [prerender(family) for family in build_families(self.statistics, self.timed_out)]


def read_statistics(connection: Any, uuid: UUID) -> dict[str, Any]:
    """Read all of libvirt's statistics of a domain, by libvirt's keys; empty if there is no such domain. Blocks.

    Raises ValueError if this domain's cannot be read, SourceLost if the connection is lost.
    """
    try:
        found = connection.domainListGetStats([connection.lookupByUUID(uuid.bytes)], 0, 0)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            return {}
        if connection.isAlive() == 1:
            raise ValueError(str(exc)) from exc
        raise SourceLost(str(exc)) from exc
    return dict(found[0][1]) if found else {}


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
        self._connection: _CountedConnection | None = None
        self._connect_lock = asyncio.Lock()
        self._pending: set[UUID] = set()
        self._last_poll = _Poll({}, frozenset())
        self._bugs = BugLog()
        self._warn = warn_once("domain statistics incomplete in this poll, retrying at the next")

    @property
    def stuck(self) -> int:
        """Abandoned calls that have not returned."""
        return self._calls.stuck

    def build_families(self) -> list[Family]:
        """List the metrics of the last poll."""
        return self._last_poll.families

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
        errors: list[str] = []
        refused: list[str] = []

        async def poll_queue() -> None:
            try:
                while queue:
                    domain = queue.pop()
                    try:
                        statistics = await self._read_domain(domain.uuid)
                    except SourceLost:
                        raise
                    except Exception as exc:
                        if not isinstance(exc, ValueError):  # which libvirt's refusal is
                            self._bugs.error("statistics of a domain failed; report the traceback", exc)
                        refused.append(f"{domain.name}: {exc}")
                        continue
                    if statistics is None:
                        hanging.add(domain.name)
                    elif statistics:
                        found[domain.name] = statistics
            except SourceLost as exc:
                queue.clear()  # the other worker ends after its current domain
                errors.append(str(exc))

        try:
            await self._get_connection()
        except SourceLost as exc:
            errors.append(str(exc))
        else:
            async with unwrapping_task_group() as workers:
                for number in range(MAX_CONCURRENT_CALLS):
                    workers.create_task(poll_queue(), name=f"domain-stats-{number}")
        if errors:
            self._disconnect()
        if errors or refused:
            self._warn(SourceLost([*errors, *sorted(refused)][0]), POLL_SECONDS)
        self._last_poll = _Poll(found, frozenset(hanging))

    async def _get_connection(self) -> _CountedConnection:
        """Get the connection, a new one where there is none or hung calls use it up."""
        async with self._connect_lock:
            current = self._connection
            if current is None or current.stuck >= MAX_STUCK_PER_CONNECTION:
                self._disconnect()
                with abandoned_on_failure() as abandoned:
                    handle = await self._calls.run(
                        lambda: open_read_only(self._uri, abandoned), deadline_seconds=DEADLINE_SECONDS
                    )
                current = self._connection = _CountedConnection(handle)
            return current

    def _disconnect(self) -> None:
        if self._connection is not None:
            start_closing(self._connection.handle)
            self._connection = None

    async def _read_domain(self, uuid: UUID) -> Statistics | None:
        """Read a domain's statistics; empty if it no longer exists, None if it does not answer.

        Raises as `read_statistics` does.
        """
        connection, loop = await self._get_connection(), asyncio.get_running_loop()
        self._pending.add(uuid)

        def read() -> Statistics:
            try:
                return self._read(connection.handle, uuid)
            finally:
                call_in_loop(loop, self._pending.discard, uuid)

        try:
            return await self._calls.run(read, deadline_seconds=self._deadline_seconds)
        except TooManyStuck:
            self._pending.discard(uuid)  # `read` was not called
            raise
        except SourceLost:
            if uuid not in self._pending:  # the call returned: libvirt failed, not the domain
                raise
            connection.stuck += 1
            return None
