"""libvirt's driver: what domains there are, as plain values, and the calls that change them.

libvirt's own event loop runs on a thread of its own and every call on another (docs/decisions/0025), so that a libvirtd
that hangs, or is gone, holds up nobody. Events carry no truth: each makes `run` look again. A look asks only what never
waits for a QEMU: all states in one call, and the XML of the domains that changed or were not read for the longest time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import structlog

from guestd.core.errors import ConfigError, SourceLost
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event
from guestd.hypervisor.blocking import BlockingCalls, call_in_loop
from guestd.hypervisor.domains import Domain, DomainDescription, name_state, parse_description

try:
    import libvirt
except ImportError:  # the extra is not installed; `require_bindings` says so to those who configured it
    libvirt = None

T = TypeVar("T")
log = structlog.get_logger()

REFRESH_SECONDS = 10.0
SNAPSHOT_DEADLINE_SECONDS = 10.0
# Starting a large guest takes its time; a suspended QEMU makes libvirt wait 30 s for its lock.
ACTION_DEADLINE_SECONDS = 60.0
# libvirtd serves five calls of a connection at a time (max_client_requests), and one is for looking.
MAX_CONCURRENT_ACTIONS = 4
MAX_STUCK_CALLS = 8
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 3
# XML read anew at each look although nothing says that it changed: not every change has an event.
REREAD_PER_SNAPSHOT = 25


@dataclass(frozen=True, slots=True)
class Counters:
    """What the driver counts; telemetry gives the functions."""

    lost: Callable[[], None]
    gave_up: Callable[[], None]
    looked: Callable[[float], None]  # seconds
    took: Callable[[float], None] = lambda _: None  # seconds, of each call


@dataclass(frozen=True, slots=True)
class _CachedDomain:
    """What is remembered of a domain between looks. `key` changes with its state and with each start."""

    key: tuple[str, str, int]
    since: float
    read_at: float
    description: DomainDescription


def require_bindings(uri: str) -> None:
    """ConfigError when libvirt is configured and its bindings are not there."""
    if uri and libvirt is None:
        raise ConfigError(
            "libvirt.uri is set, and libvirt-python is not installed: install guestd[libvirt] (it is compiled against"
            " libvirt's headers), or leave libvirt.uri empty"
        )


class Hypervisor:
    """One libvirt, connected to for as long as `run` runs. Other methods raise SourceLost while it is not."""

    def __init__(self, uri: str, counters: Counters, *, deadline_seconds: float = SNAPSHOT_DEADLINE_SECONDS) -> None:
        require_bindings(uri)
        self._deadline_seconds = deadline_seconds
        self.uri = uri
        self.domains: tuple[Domain, ...] = ()
        """As of the last look that succeeded; empty before the first."""
        self.observed_at: float | None = None
        """Monotonic second in which that look began."""
        self.error: str | None = "not connected yet"
        self._counters = counters
        self._calls = BlockingCalls(
            "libvirt", at_once=1, stuck_cap=MAX_STUCK_CALLS, gave_up=counters.gave_up, took=counters.took
        )
        # Apart, for looking must not wait for a guest that takes a minute to start.
        self._acts = BlockingCalls(
            "libvirt-act",
            at_once=MAX_CONCURRENT_ACTIONS,
            stuck_cap=MAX_STUCK_CALLS,
            gave_up=counters.gave_up,
            took=counters.took,
        )
        self._connection: Any = None
        self._looking = asyncio.Lock()
        self._noticed = asyncio.Event()
        self._changed: set[UUID] = set()
        self._is_closed = False
        self._reads: Mapping[UUID, _CachedDomain] = {}
        self._listeners: list[asyncio.Event] = []

    @property
    def stuck(self) -> int:
        """Calls that were given up and have not come back."""
        return self._calls.stuck + self._acts.stuck

    def subscribe(self) -> asyncio.Event:
        """An event that every look sets, and every loss of the connection; whoever asked for it clears it."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event

    async def run(self) -> None:
        """Stay connected and look whenever libvirt tells of a change, for ever."""

        def lost(exc: Exception, seconds: float) -> None:
            self.error = str(exc)
            self._counters.lost()
            self._tell_listeners()
            log.warning("libvirt is not available: its machines are unknown", error=str(exc), retry=round(seconds, 1))

        await run_with_retry(self._life, expected=SourceLost, backoff=Backoff(cap_seconds=5), on_failure=lost)

    async def observe(self) -> tuple[Domain, ...]:
        """All domains, as they are now."""
        async with self._looking:
            began = time.monotonic()
            connection, changed = self._live(), self._changed
            self._changed = set()
            try:
                self._reads, domains = await self._call(lambda: _take_snapshot(connection, self._reads, changed, began))
            except BaseException:
                self._changed |= changed
                raise
            self.domains, self.observed_at, self.error = domains, began, None
            self._counters.looked(time.monotonic() - began)
            self._tell_listeners()
            return domains

    async def version(self) -> str:
        """libvirt's version and the name of its driver."""
        connection = self._live()
        number, kind = await self._call(lambda: (connection.getLibVersion(), connection.getType()))
        return f"libvirt {number // 1_000_000}.{number // 1000 % 1000}.{number % 1000} {kind}"

    async def start(self, uuid: UUID) -> str | None:
        """Boot a domain. Like the others that act: None when it was done, or what libvirt refused and why."""
        return await self._act(uuid, lambda domain: domain.create())

    async def resume(self, uuid: UUID) -> str | None:
        """Let a paused domain go on."""
        return await self._act(uuid, lambda domain: domain.resume())

    async def suspend(self, uuid: UUID) -> str | None:
        """Pause a domain."""
        return await self._act(uuid, lambda domain: domain.suspend())

    async def shutdown(self, uuid: UUID) -> str | None:
        """Ask the guest to end; returns before it does."""
        return await self._act(uuid, lambda domain: domain.shutdown())

    async def destroy(self, uuid: UUID) -> str | None:
        """Take a domain's power away."""
        return await self._act(uuid, lambda domain: domain.destroy())

    async def _act(self, uuid: UUID, act: Callable[[Any], object]) -> str | None:
        connection = self._live()

        def refused() -> str | None:
            try:
                act(connection.lookupByUUID(uuid.bytes))
            except libvirt.libvirtError as exc:
                if connection.isAlive() != 1:
                    raise
                return str(exc)
            return None

        try:
            return await self._acts.run(refused, deadline_seconds=ACTION_DEADLINE_SECONDS)
        except libvirt.libvirtError as exc:
            raise SourceLost(f"{self.uri}: {exc}") from exc

    def _live(self) -> Any:
        if self._connection is None:
            raise SourceLost(f"{self.uri}: {self.error}")
        return self._connection

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await self._calls.run(function, deadline_seconds=self._deadline_seconds)
        except libvirt.libvirtError as exc:
            raise SourceLost(f"{self.uri}: {exc}") from exc

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """One connection's life: `look` and the rest work in here."""
        _start_event_loop()
        loop = asyncio.get_running_loop()
        self._is_closed = False
        given_up = threading.Event()
        try:
            connection, registered = await self._call(lambda: self._opened(loop, given_up))
        except BaseException:
            given_up.set()
            raise
        self._connection = connection
        try:
            yield
        finally:
            self._connection = None
            # Not waited for: of a libvirtd that hangs there is no answer to this either.
            closing = threading.Thread(
                target=_close_connection, args=(connection, registered), name="libvirt-close", daemon=True
            )
            closing.start()

    async def _life(self) -> None:
        async with self.connected():
            log.info("libvirt is connected", uri=self.uri)
            while not self._is_closed:
                self._noticed.clear()
                await self.observe()
                await wait_for_event(self._noticed, REFRESH_SECONDS)
            raise SourceLost(f"{self.uri}: the connection was closed")

    def _opened(self, loop: asyncio.AbstractEventLoop, given_up: threading.Event) -> tuple[Any, list[int]]:
        """A connection that tells of every change; runs on a thread of its own.

        One that comes when it was given up is closed: nobody else would, and it would tell of changes for ever.
        """
        with _open_lock:
            if given_up.is_set():
                raise SourceLost(f"{self.uri}: too late to open it, another took so long")
            connection = libvirt.open(self.uri)

        def changed(_connection: Any, domain: Any, *_: object) -> None:
            call_in_loop(loop, self._notice, UUID(bytes=domain.UUID()))

        def closed(*_: object) -> None:
            call_in_loop(loop, self._close_noticed, connection)

        try:
            connection.registerCloseCallback(closed, None)
            _set_keepalive(connection, KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            registered = [connection.domainEventRegisterAny(None, kind, changed, None) for kind in _list_event_kinds()]
        except libvirt.libvirtError:
            _close_connection(connection, [])
            raise
        if given_up.is_set():
            _close_connection(connection, registered)
            raise SourceLost(f"{self.uri}: connected too late")
        return connection, registered

    def _notice(self, uuid: UUID) -> None:
        self._changed.add(uuid)
        self._noticed.set()

    def _close_noticed(self, connection: Any) -> None:
        # One of an earlier connection may come late.
        if connection is self._connection:
            self._is_closed = True
            self._noticed.set()

    def _tell_listeners(self) -> None:
        for event in self._listeners:
            event.set()


def open_read_only(uri: str) -> Any:
    """A connection that may only read; blocks. SourceLost when there is none."""
    _start_event_loop()
    try:
        with _open_lock:
            connection = libvirt.openReadOnly(uri)
        _set_keepalive(connection, KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
    except libvirt.libvirtError as exc:
        raise SourceLost(f"{uri}: {exc}") from exc
    return connection


def read_statistics(connection: Any, uuid: UUID) -> dict[str, Any]:
    """All that libvirt counts of a domain, by its own keys, empty when there is no such domain; blocks."""
    try:
        found = connection.domainListGetStats([connection.lookupByUUID(uuid.bytes)], 0, 0)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            return {}
        raise SourceLost(str(exc)) from exc
    return dict(found[0][1]) if found else {}


def _set_keepalive(connection: Any, seconds: int, count: int) -> None:
    try:
        connection.setKeepAlive(seconds, count)
    except libvirt.libvirtError as exc:  # drivers within this process have no line that could go dead
        if exc.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise


def _list_event_kinds() -> tuple[int, ...]:
    return (
        libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
        libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
        libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
        libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
        libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    )


def _take_snapshot(
    connection: Any, reads: Mapping[UUID, _CachedDomain], changed: set[UUID], now: float
) -> tuple[dict[UUID, _CachedDomain], tuple[Domain, ...]]:
    """Every domain and what to remember of it; runs on a thread of its own and changes nothing that others see."""
    oldest = sorted(reads, key=lambda uuid: reads[uuid].read_at)[:REREAD_PER_SNAPSHOT]
    doubtful = changed.union(oldest)
    found: dict[UUID, _CachedDomain] = {}
    domains = []
    for handle, read_statistics in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
        uuid, number = UUID(bytes=handle.UUID()), handle.ID()
        state, reason = name_state(read_statistics.get("state.state", 0), read_statistics.get("state.reason", 0))
        before, key = reads.get(uuid), (state, reason, number)
        if before is not None and before.key == key and uuid not in doubtful:
            read = before
        else:
            description = _read_description(handle)
            if description is None:
                continue
            is_same = before is not None and before.key == key
            read = _CachedDomain(key, before.since if is_same and before is not None else now, now, description)
        found[uuid] = read
        domains.append(Domain(uuid, handle.name(), state, reason, number >= 0, read.since, read.description))
    return found, tuple(domains)


def _read_description(handle: Any) -> DomainDescription | None:
    """What its XML says; None when it was undefined meanwhile."""
    try:
        return parse_description(handle.XMLDesc())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _close_connection(connection: Any, registered: list[int]) -> None:
    try:
        # A keepalive that fails while a call waits for its answer crashes libvirt 9.0 when libvirtd goes on.
        _set_keepalive(connection, 0, 0)
        for number in registered:
            connection.domainEventDeregisterAny(number)
        connection.unregisterCloseCallback()
        connection.close()
    except libvirt.libvirtError:  # the other side is gone, and with it what was to be tidied up
        pass


# Of several that a libvirtd which hangs keeps waiting, the later ones see that they were given up, and open nothing.
_open_lock = threading.Lock()
_events_thread: threading.Thread | None = None


def _start_event_loop() -> None:
    """libvirt's own event loop, once in a process and before the first connection."""
    global _events_thread  # noqa: PLW0603 -- libvirt has one event loop a process, and no second
    if _events_thread is not None:
        return
    libvirt.registerErrorHandler(lambda *_: None, None)  # its errors come as exceptions, and need not be printed too
    libvirt.virEventRegisterDefaultImpl()

    def turn() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    _events_thread = threading.Thread(target=turn, name="libvirt-events", daemon=True)
    _events_thread.start()
