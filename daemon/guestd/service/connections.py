"""Connections of the pages: how many there are, how fast they come, and how long each may take for what it does.

A stranger may open connections, and never say or read anything. So there is room for a few, a new one takes the place
of another, and each has a deadline. The rest of guestd shares the event loop and the file descriptors with them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from guestd.core.descriptors import KEPT_FROM_PAGES, is_kept
from guestd.core.tasks import warn_once
from guestd.telemetry.registry import PageMetrics

log = structlog.get_logger()

# Prometheus needs one or two, a browser six.
MAX_CONNECTIONS = 64
# A TLS handshake takes one or two milliseconds of the event loop, an answer a third of one.
CONNECTIONS_A_SECOND = 100.0
REQUESTS_A_SECOND = 200.0
RETRY_SECONDS = 1.0
# At the end, for transports to close their sockets.
CLOSE_SECONDS = 1.0
BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a connection may take for what it does."""

    first_request_seconds: float = 10.0
    """From the connection to the end of the first request's header, the TLS handshake included."""
    answer_seconds: float = 30.0
    """From the header of a request until its answer has been read. Prometheus itself waits 10 s by default."""
    idle_seconds: float = 75.0
    """From an answer to the end of the next request's header: more than the usual 60 s between two scrapes."""


class Pace:
    """Turns at a limited rate, in the order in which they were asked for."""

    def __init__(self, turns_a_second: float) -> None:
        self._gap_seconds = 1 / turns_a_second
        self._next_at = 0.0

    async def wait_turn(self) -> None:
        """Wait until it is this caller's turn."""
        now = asyncio.get_running_loop().time()
        self._next_at = max(now, self._next_at + self._gap_seconds)
        await asyncio.sleep(self._next_at - now)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection. `answered_at` is 0 before the first answer; `has_logged_in` is never set where none need to."""

    socket: socket.socket
    address: str
    has_logged_in: bool = False
    answered_at: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether it still has its descriptor."""
        return self.socket.fileno() != -1

    def end(self) -> None:
        """End it, whatever state it is in: its transport reads an end of stream, and cannot write any more."""
        if self.timer is not None:
            self.timer.cancel()
        with suppress(OSError):  # it has ended already
            self.socket.shutdown(socket.SHUT_RDWR)


class Connections:
    """All connections of the pages."""

    def __init__(self, metrics: PageMetrics, deadlines: Deadlines) -> None:
        self._metrics = metrics
        self._deadlines = deadlines
        self._connections: dict[object, Connection] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._pace = Pace(CONNECTIONS_A_SECOND)
        self._warn_refused = warn_once("pages cannot accept connections, retrying; raise LimitNOFILE of the unit")
        metrics.connections.set_function(self._count)

    def _count(self) -> int:
        return sum(each.is_open for each in list(self._connections.values()))

    def get(self, protocol: object) -> Connection:
        """The connection of a protocol that `accept_all` created."""
        return self._connections[protocol]

    async def accept_all(
        self, listener: socket.socket, create_protocol: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None
    ) -> None:
        """Accept connections until cancelled."""
        while True:
            await self._pace.wait_turn()
            try:
                accepted, peer = await _accept(listener)
            except OSError as exc:  # a peer that has gone already, or no descriptor
                self._metrics.closed.labels("descriptors").inc()
                self._warn_refused(exc, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                self._add(accepted, peer[0], create_protocol(), tls)
            except BaseException:
                accepted.close()
                raise

    def _add(
        self, accepted: socket.socket, peer: str, protocol: asyncio.BaseProtocol, tls: ssl.SSLContext | None
    ) -> None:
        self._make_room()
        connection = Connection(accepted, group_address(peer))
        self._connections[protocol] = connection
        self._expect(connection, self._deadlines.first_request_seconds)
        opening = asyncio.create_task(_open(connection, protocol, tls), name="pages-connection")
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def close(self) -> None:
        """End all, also those that are opening or whose peer does not read. Nothing is accepted any more."""
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        for each in self._connections.values():
            each.end()
        # Their transports close the sockets as soon as they notice.
        last = asyncio.get_running_loop().time() + CLOSE_SECONDS
        while self._count() and asyncio.get_running_loop().time() < last:  # noqa: ASYNC110 -- transports report nothing
            await asyncio.sleep(0.01)

    @contextmanager
    def answering(self, connection: Connection) -> Iterator[None]:
        """The time from a request's header to the end of its answer; before and after it the connection is idle."""
        self._expect(connection, self._deadlines.answer_seconds)
        yield
        connection.answered_at = asyncio.get_running_loop().time()
        self._expect(connection, self._deadlines.idle_seconds)

    def _expect(self, connection: Connection, seconds: float) -> None:
        """End the connection after this time, unless this is called again."""
        if connection.timer is not None:
            connection.timer.cancel()
        connection.timer = asyncio.get_running_loop().call_later(seconds, self._end_late, connection)

    def _end_late(self, connection: Connection) -> None:
        if connection.is_open:
            self._metrics.closed.labels("deadline").inc()
            connection.end()

    def _make_room(self) -> None:
        self._connections = {key: each for key, each in self._connections.items() if each.is_open}
        if len(self._connections) < MAX_CONNECTIONS:
            return
        victim = choose_victim(self._connections.values())
        self._connections = {key: each for key, each in self._connections.items() if each is not victim}
        self._metrics.closed.labels("replaced").inc()
        victim.end()


async def _accept(listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
    accepted, peer = await asyncio.get_running_loop().sock_accept(listener)
    if is_kept(accepted.fileno(), KEPT_FROM_PAGES):
        accepted.close()
        raise OSError("the last file descriptors are kept for channels")
    return accepted, peer


async def _open(connection: Connection, protocol: asyncio.BaseProtocol, tls: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_accepted_socket(lambda: protocol, connection.socket, ssl=tls)
    except OSError:  # not TLS, no client certificate, or gone: a stranger's failures are not logged
        connection.end()
        connection.socket.close()
    except asyncio.CancelledError:
        connection.socket.close()
        raise


def choose_victim(connections: Collection[Connection]) -> Connection:
    """Choose which connection makes room for a new one.

    Those that have logged in come last, then those of an address with few of them. Among the others it is the one whose
    last answer is longest ago; one without any answer before those, the oldest first.
    """
    strangers = [each for each in connections if not each.has_logged_in] or list(connections)
    number = Counter(each.address for each in strangers)
    return min(strangers, key=lambda each: (-number[each.address], each.answered_at))


def group_address(address: str) -> str:
    """Whom an address counts as: an IPv6 network of 64 bits is one sender's."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False).network_address)


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on each address of a host, an empty name being all of this host's. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            listeners.append(socket.create_server(address, family=family, backlog=BACKLOG))
            listeners[-1].setblocking(False)
    except OSError:
        for each in listeners:
            each.close()
        raise
    return listeners
