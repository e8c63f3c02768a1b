"""The libvirt driver: snapshots of all domains as plain values, and the calls that change a domain.

libvirt's event loop runs on its own thread and every call on another (docs/decisions/0025), so that a libvirtd that
hangs or is gone does not block guestd. Events carry no state: each only triggers a new snapshot. A snapshot uses calls
that never wait for a QEMU: all states in one call, and the XML of domains that changed or were read longest ago.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID

import structlog

from guestd.core.errors import SourceLost
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event
from guestd.hypervisor.blocking import BlockingCalls, NotSent, call_in_loop
from guestd.hypervisor.connection import (
    abandoned_on_failure,
    call_or_refuse,
    close_if_abandoned,
    close_unused,
    describe_version,
    open_read_write,
    read_host_uuid,
    read_xml,
    require_bindings,
    start_closing,
    translate_errors,
)
from guestd.hypervisor.domains import Boot, Domain, DomainDescription, name_state, name_stop, parse_description
from guestd.hypervisor.xml import Unreadable
from guestd.telemetry.registry import VmMetrics

try:
    import libvirt
except ImportError:  # guestd[libvirt] is not installed; `require_bindings` raises
    libvirt = None

T = TypeVar("T")
log = structlog.get_logger()

REFRESH_SECONDS = 10.0
SNAPSHOT_DEADLINE_SECONDS = 10.0
# Starting a large guest takes long; a suspended QEMU makes libvirt wait 30 s for its lock.
ACTION_DEADLINE_SECONDS = 60.0
# libvirtd serves five calls of a connection at a time (max_client_requests); one is left for snapshots.
MAX_CONCURRENT_ACTIONS = 4
MAX_STUCK_CALLS = 8
# Domains whose XML is reread in each snapshot although no event reported a change: some changes have no event.
REREAD_PER_SNAPSHOT = 25
# Stops of domains that are gone; beyond it the oldest are forgotten.
MAX_STOPS = 10_000


@dataclass(frozen=True, slots=True)
class _CachedDomain:
    """A domain as of an earlier snapshot. `key` changes with its state and with each start."""

    key: tuple[str, str, int]
    since: float
    read_at: float
    description: DomainDescription | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """The domain of an action, as it was observed. libvirt is called only while the domain still is all of this.

    `send_until` is the monotonic time after which it is not called, because nobody knows whether that is still wanted.
    """

    uuid: UUID
    name: str
    state: str
    boot: Boot
    send_until: float = math.inf


class Hypervisor:
    """One libvirt, connected while `run` runs; the other methods raise SourceLost while it is not connected."""

    def __init__(self, uri: str, metrics: VmMetrics, *, deadline_seconds: float = SNAPSHOT_DEADLINE_SECONDS) -> None:
        require_bindings(uri)
        self._deadline_seconds = deadline_seconds
        self.uri = uri
        self.domains: tuple[Domain, ...] = ()
        """As of the last successful snapshot; empty before the first."""
        self.observed_at: float | None = None
        """Monotonic time at which that snapshot began."""
        self.stops: dict[UUID, str] = {}
        """Why domains stopped that are not in that snapshot, by UUID, as far as libvirt has reported it."""
        self.error: str | None = "not connected yet"
        self._metrics = metrics
        self._calls = BlockingCalls("libvirt", max_concurrent=1, max_stuck=MAX_STUCK_CALLS, metrics=metrics)
        # Separate, because snapshots must not wait for a guest that takes a minute to start.
        self._actions = BlockingCalls(
            "libvirt-act", max_concurrent=MAX_CONCURRENT_ACTIONS, max_stuck=MAX_STUCK_CALLS, metrics=metrics
        )
        self._connection: Any = None
        self._snapshot_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed: set[UUID] = set()
        # The last stop of each domain that was reported since the last snapshot began.
        self._new_stops: dict[UUID, str] = {}
        # Of each domain the number of its last lifecycle or reboot event, in this connection.
        self._last_events: dict[UUID, int] = {}
        self._connection_count = self._event_count = 0
        self._is_closed = False
        self._cached: Mapping[UUID, _CachedDomain] = {}
        self._subscribers: list[asyncio.Event] = []

    @property
    def stuck(self) -> int:
        """Abandoned calls that have not returned."""
        return self._calls.stuck + self._actions.stuck

    def subscribe(self) -> asyncio.Event:
        """Return an event that every snapshot and every loss of the connection sets; the caller clears it."""
        event = asyncio.Event()
        self._subscribers.append(event)
        return event

    async def run(self) -> None:
        """Stay connected and take a snapshot whenever libvirt reports a change; never returns."""

        def on_failure(exc: Exception, delay_seconds: float) -> None:
            self.error = str(exc)
            self._metrics.libvirt_lost.inc()
            self._notify_subscribers()
            log.warning(
                "libvirt unavailable, state of its VMs unknown; reconnecting",
                error=str(exc),
                retry_seconds=round(delay_seconds, 1),
            )

        await run_with_retry(
            self._observe_until_lost, expected=SourceLost, backoff=Backoff(cap_seconds=5), on_failure=on_failure
        )

    async def observe(self) -> tuple[Domain, ...]:
        """Take a snapshot of all domains."""
        async with self._snapshot_lock:
            began = time.monotonic()
            connection, changed, new_stops = self._get_connection(), self._changed, self._new_stops
            self._changed, self._new_stops = set(), {}
            # Read before the snapshot: an event during it makes the boot that it reports an earlier one.
            events, number, count = dict(self._last_events), self._connection_count, self._event_count
            try:
                self._cached, domains = await self._call(
                    lambda: _take_snapshot(connection, self._cached, changed, began)
                )
            except BaseException:
                self._changed |= changed
                self._new_stops = new_stops | self._new_stops
                raise
            domains = tuple(
                replace(domain, boot=Boot(number, events.get(domain.uuid, 0), domain.boot.id)) for domain in domains
            )
            uuids = {domain.uuid for domain in domains}
            self._last_events = {
                uuid: event for uuid, event in self._last_events.items() if uuid in uuids or event > count
            }
            stops = {uuid: why for uuid, why in (self.stops | new_stops).items() if uuid not in uuids}
            self.stops = dict(list(stops.items())[-MAX_STOPS:])
            self.domains, self.observed_at, self.error = domains, began, None
            self._metrics.snapshot_seconds.observe(time.monotonic() - began)
            self._notify_subscribers()
            return domains

    async def get_version(self) -> str:
        """Get the version of libvirt and the name of its hypervisor driver."""
        connection = self._get_connection()
        return await self._call(lambda: describe_version(connection))

    async def get_host_uuid(self) -> str:
        """Get libvirt's UUID of the host, empty if it has none."""
        connection = self._get_connection()
        return await self._call(lambda: read_host_uuid(connection))

    @property
    def connection_count(self) -> int:
        """How often this was connected: libvirt may be on another host each time."""
        return self._connection_count

    def action_slot(self) -> AbstractAsyncContextManager[None]:
        """Wait for one of the places for actions, and hold it: whether an action is still due is checked inside."""
        return self._actions.slot()

    def is_current(self, target: Target) -> bool:
        """Whether libvirt has reported no change of a domain since it was observed."""
        event = self._last_events.get(target.uuid, 0)
        return (target.boot.connection, target.boot.event) == (self._connection_count, event)

    async def start(self, target: Target) -> str | None:
        """Boot a domain; the caller holds a slot. Returns None on success, or libvirt's error message.

        Raises NotSent if libvirt was not called, because the domain has changed or libvirt is not connected, and
        SourceLost if it has not answered: the call may have taken effect. So do the following methods.
        """
        return await self._run_action(target, lambda domain: domain.create())

    async def resume(self, target: Target) -> str | None:
        """Resume a paused domain."""
        return await self._run_action(target, lambda domain: domain.resume())

    async def suspend(self, target: Target) -> str | None:
        """Pause a running domain."""
        return await self._run_action(target, lambda domain: domain.suspend())

    async def shutdown(self, target: Target) -> str | None:
        """Request the guest to shut down; returns before it has."""
        return await self._run_action(target, lambda domain: domain.shutdown())

    async def destroy(self, target: Target) -> str | None:
        """Power a domain off."""
        return await self._run_action(target, lambda domain: domain.destroy())

    async def _run_action(self, target: Target, act: Callable[[Any], object]) -> str | None:
        def look_up(connection: Any) -> Any:
            domain = connection.lookupByUUID(target.uuid.bytes)
            _check_target(domain, target)
            return domain

        current = self._get_connection()
        if not self.is_current(target):
            raise NotSent(f"{target.name}: libvirt has reported a change of the domain since")
        # In a call of its own, so that it is known that nothing was sent when libvirt does not answer: a thread whose
        # caller has given up goes on when libvirt answers at last.
        left_seconds = max(0.0, min(ACTION_DEADLINE_SECONDS, target.send_until - time.monotonic()))
        try:
            with translate_errors(self.uri):
                found = await self._actions.run_in_slot(
                    lambda: call_or_refuse(current, look_up), deadline_seconds=left_seconds
                )
        except NotSent:
            raise
        except SourceLost as exc:
            raise NotSent(f"{self.uri}: libvirt did not answer in time, or the connection was lost") from exc
        if isinstance(found, str):
            return found
        if not self.is_current(target):
            raise NotSent(f"{target.name}: libvirt has reported a change of the domain since")
        with translate_errors(self.uri):
            return await self._actions.run_in_slot(
                lambda: call_or_refuse(current, lambda _: _act(act, found)), deadline_seconds=ACTION_DEADLINE_SECONDS
            )

    def _get_connection(self) -> Any:
        if self._connection is None:
            raise NotSent(f"{self.uri}: {self.error}")
        return self._connection

    async def _call(self, function: Callable[[], T]) -> T:
        with translate_errors(self.uri):
            return await self._calls.run(function, deadline_seconds=self._deadline_seconds)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[None]:
        """Connect to libvirt for the duration of the context."""
        loop = asyncio.get_running_loop()
        self._is_closed = False
        with abandoned_on_failure() as abandoned:
            connection, callback_ids = await self._call(lambda: self._open(loop, abandoned))
        self._connection = connection
        # What was reported before may not be the last that happened.
        self.stops, self._new_stops = {}, {}
        self._last_events = {}
        self._connection_count += 1
        try:
            yield
        finally:
            self._connection = None
            start_closing(connection, callback_ids)

    async def _observe_until_lost(self) -> None:
        async with self.connect():
            log.info("libvirt connected", uri=self.uri)
            while not self._is_closed:
                self._wake.clear()
                await self.observe()
                await wait_for_event(self._wake, REFRESH_SECONDS)
            raise SourceLost(f"{self.uri}: libvirt closed the connection")

    def _open(self, loop: asyncio.AbstractEventLoop, abandoned: threading.Event) -> tuple[Any, list[int]]:
        """Open a connection with event callbacks; runs on its own thread."""
        connection = open_read_write(self.uri, abandoned)

        def on_change(_connection: Any, domain: Any, *_: object) -> None:
            call_in_loop(loop, self._on_domain_event, UUID(bytes=domain.UUID()))

        def on_reboot(_connection: Any, domain: Any, *_: object) -> None:
            call_in_loop(loop, self._on_boot_event, UUID(bytes=domain.UUID()))

        def on_lifecycle(_connection: Any, domain: Any, event: int, detail: int, _: object) -> None:
            if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
                call_in_loop(loop, self._on_stop_event, UUID(bytes=domain.UUID()), name_stop(detail))
            call_in_loop(loop, self._on_boot_event, UUID(bytes=domain.UUID()))

        def on_close(*_: object) -> None:
            call_in_loop(loop, self._on_close_event, connection)

        callbacks: dict[int, Callable[..., None]] = {
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: on_lifecycle,
            libvirt.VIR_DOMAIN_EVENT_ID_REBOOT: on_reboot,
        }
        callback_ids: list[int] = []
        try:
            connection.registerCloseCallback(on_close, None)
            for kind in _list_event_kinds():
                # Not a comprehension: if one fails, those before it are removed.
                callback = callbacks.get(kind, on_change)
                callback_ids.append(connection.domainEventRegisterAny(None, kind, callback, None))
        except libvirt.libvirtError:
            close_unused(connection, callback_ids)
            raise
        close_if_abandoned(connection, abandoned, self.uri, callback_ids)
        return connection, callback_ids

    def _on_domain_event(self, uuid: UUID) -> None:
        self._changed.add(uuid)
        self._wake.set()

    def _on_boot_event(self, uuid: UUID) -> None:
        self._event_count += 1
        self._last_events[uuid] = self._event_count
        self._on_domain_event(uuid)

    def _on_stop_event(self, uuid: UUID, reason: str) -> None:
        self._new_stops.pop(uuid, None)  # the dictionary is ordered by the last stop
        self._new_stops[uuid] = reason

    def _on_close_event(self, connection: Any) -> None:
        # The event of an earlier connection may arrive late.
        if connection is self._connection:
            self._is_closed = True
            self._wake.set()

    def _notify_subscribers(self) -> None:
        for event in self._subscribers:
            event.set()


def _act(act: Callable[[Any], object], domain: Any) -> None:
    act(domain)


def _check_target(domain: Any, target: Target) -> None:
    """Raise NotSent where a domain is no longer as it was observed; blocks."""
    state, _ = name_state(*domain.state())
    if (domain.name(), domain.ID(), state) != (target.name, target.boot.id, target.state):
        raise NotSent(f"{target.name}: the domain is no longer {target.state} as observed")


def _list_event_kinds() -> tuple[int, ...]:
    return (
        libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
        libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
        libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
        libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
        libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    )


def _take_snapshot(
    connection: Any, cached: Mapping[UUID, _CachedDomain], changed: set[UUID], now: float
) -> tuple[dict[UUID, _CachedDomain], tuple[Domain, ...]]:
    """Read every domain; returns the new cache and the domains. Runs on its own thread and modifies no shared state."""
    oldest = sorted(cached, key=lambda uuid: cached[uuid].read_at)[:REREAD_PER_SNAPSHOT]
    stale = changed.union(oldest)
    found: dict[UUID, _CachedDomain] = {}
    domains = []
    for handle, statistics in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
        uuid, number = UUID(bytes=handle.UUID()), handle.ID()
        state, reason = name_state(statistics.get("state.state", 0), statistics.get("state.reason", 0))
        before, key = cached.get(uuid), (state, reason, number)
        if before is not None and before.key == key and uuid not in stale:
            entry = before
        else:
            read = _read_description(connection, handle)
            if read is None:
                continue
            is_same = before is not None and before.key == key
            since = before.since if is_same and before is not None else now
            if isinstance(read, Unreadable):
                entry = _CachedDomain(key, since, now, None if before is None else before.description, read.reason)
            else:
                entry = _CachedDomain(key, since, now, read, None)
        found[uuid] = entry
        domains.append(
            Domain(
                uuid, handle.name(), state, reason, number >= 0, entry.since, entry.description, entry.problem,
                Boot(0, 0, number),
            )
        )  # fmt: skip
    return found, tuple(domains)


def _read_description(connection: Any, handle: Any) -> DomainDescription | Unreadable | None:
    """Read a domain's XML; None if it was undefined meanwhile."""
    xml = read_xml(connection, handle.XMLDesc, libvirt.VIR_ERR_NO_DOMAIN)
    if not isinstance(xml, str):
        return xml
    try:
        return parse_description(xml)
    except ValueError as exc:
        return Unreadable(str(exc))
