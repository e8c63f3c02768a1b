"""Virtio-serial channels: QEMU serves one unix socket a machine, guestd is its client.

What should be read (the channels that `place` finds) is compared with what is being read; readers are opened and closed
by the difference. The place's events, the machine registry and a timer only wake the comparison.

What a channel is like (measured): connecting proves nothing, for a second client waits in QEMU's backlog and hears
nothing; a guest's reset gives no end of stream; a first line may be the rest of one; what was not read when the
connection closes is gone, so on stopping what has arrived is still read.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog

from guestd.core.errors import SourceLost
from guestd.core.machines import MachineRegistry
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event
from guestd.ingest.discovery import ChannelDiscovery, ChannelSocket
from guestd.ingest.gate import Intake
from guestd.wire import replies, schema
from guestd.wire.framing import Framer, Oversize

log = structlog.get_logger()

READ_BYTES = 64 * 1024
# A guest that writes nothing but short lines is accepted, and paced, by so many of them.
LINES_AT_ONCE = 256
CONNECT_SECONDS = 5.0
LAST_READ_SECONDS = 2.0
RESCAN_SECONDS = 5.0
# Not to connect to machines that the store will not know; not longer, for what a guest writes unread may be lost.
FIRST_ROSTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Open:
    """Begin to read."""

    channel: ChannelSocket


@dataclass(frozen=True, slots=True)
class Close:
    """Stop reading: the file went away, was replaced, or the store no longer knows the machine."""

    channel: ChannelSocket


def plan(wanted: Mapping[UUID, ChannelSocket], running: Mapping[UUID, ChannelSocket]) -> tuple[Open | Close, ...]:
    """What leads from the channels that are read to those that should be; closing comes first."""
    closing = [Close(channel) for key, channel in running.items() if wanted.get(key) != channel]
    opening = [Open(channel) for key, channel in wanted.items() if running.get(key) != channel]
    return (*closing, *opening)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the source shows; telemetry gives the functions."""

    connected: Callable[[int], None]
    channels: Callable[[int], None]
    unknown_machines: Callable[[int], None]
    not_collected: Callable[[int], None]
    lost: Callable[[], None]


class Virtio:
    """All channels of one place."""

    def __init__(
        self,
        place: ChannelDiscovery,
        *,
        intake: Intake,
        machine_registry: MachineRegistry,
        gauges: Gauges,
        max_frame_bytes: int,
        wrapped: Callable[[UUID, bytes], bytes],
    ) -> None:
        self._place = place
        self._wrapped = wrapped
        self._intake = intake
        self._machine_registry = machine_registry
        self._gauges = gauges
        self._max_frame_bytes = max_frame_bytes
        self._running: dict[UUID, tuple[ChannelSocket, asyncio.Task[None]]] = {}
        self._unknown: frozenset[str] = frozenset()
        self._look = asyncio.Event()
        self.connected = 0

    async def run(self) -> None:
        """Read all channels, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._place.watch(self._look.set), name="virtio-watch")
            tasks.create_task(self._watch_roster(), name="virtio-machine registry")
            await wait_for_event(self._machine_registry.attempted, FIRST_ROSTER_SECONDS)
            while True:
                self._look.clear()
                found = await self._place.discover()
                if found is not None:
                    self._report(found.unknown)
                    running = {key: channel for key, (channel, _) in self._running.items()}
                    await self._apply(plan(self._collected(found.channels), running), tasks)
                self._gauges.channels(len(self._running))
                await wait_for_event(self._look, RESCAN_SECONDS)

    def _report(self, unknown: frozenset[str]) -> None:
        for machine in sorted(unknown - self._unknown):
            log.warning("a channel of a machine that the store does not know is not read", machine=machine)
        self._unknown = unknown
        self._gauges.unknown_machines(len(unknown))

    def _collected(self, channels: Mapping[UUID, ChannelSocket]) -> Mapping[UUID, ChannelSocket]:
        wanted = {key: channel for key, channel in channels.items() if self._machine_registry.collects(key)}
        self._gauges.not_collected(len(channels) - len(wanted))
        return wanted

    async def _apply(self, actions: Sequence[Open | Close], tasks: asyncio.TaskGroup) -> None:
        closing = [self._running.pop(action.channel.machine_id)[1] for action in actions if isinstance(action, Close)]
        for reader in closing:
            reader.cancel()
        if closing:
            # Their last lines are on disk before a successor may read; all at once, for each may take its time.
            await asyncio.wait(closing)
        for action in actions:
            if isinstance(action, Open):
                channel = action.channel
                reader = tasks.create_task(self._read(channel), name=f"virtio-{channel.machine_id}")
                self._running[channel.machine_id] = (channel, reader)

    async def _watch_roster(self) -> None:
        while True:
            await self._machine_registry.changed.wait()
            self._machine_registry.changed.clear()
            self._look.set()

    async def _read(self, channel: ChannelSocket) -> None:
        def lost(exc: Exception, seconds: float) -> None:
            self._gauges.lost()
            log.info("channel lost", machine=str(channel.machine_id), error=str(exc), retry_seconds=round(seconds, 1))

        await run_with_retry(lambda: self._connection(channel), expected=SourceLost, backoff=Backoff(), on_failure=lost)

    async def _connection(self, channel: ChannelSocket) -> None:
        """One connection's life."""
        connection = await _connected(channel.path)
        self._count_connected(1)
        machine_id = channel.machine_id
        wrapped = functools.partial(self._wrapped, machine_id)
        reader = _Reader(machine_id, connection, self._intake, Framer(self._max_frame_bytes), wrapped)
        reader.say([replies.COLLECT])
        try:
            await reader.run()
        except asyncio.CancelledError:
            await reader.take_what_has_arrived()
            raise
        finally:
            self._count_connected(-1)
            reader.close()

    def _count_connected(self, change: int) -> None:
        self.connected += change
        self._gauges.connected(self.connected)


class _Reader:
    """One connection: bytes to lines to intake, and the answers back in their wrapping."""

    def __init__(
        self,
        machine_id: UUID,
        connection: socket.socket,
        intake: Intake,
        framer: Framer,
        wrapped: Callable[[bytes], bytes],
    ) -> None:
        self._wrapped = wrapped
        self._machine_id = machine_id
        self._connection = connection
        self._intake = intake
        self._framer = framer
        self._lines: deque[bytes | Oversize] = deque()
        self._is_first_line = True
        self._unsent = bytearray()

    async def run(self) -> None:
        """Read until the peer closes (SourceLost)."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                chunk = await loop.sock_recv(self._connection, READ_BYTES)
            except OSError as exc:
                raise SourceLost(exc.strerror) from exc
            if not chunk:
                raise SourceLost("closed by the other side")
            frames, size_bytes = await self._take(chunk), len(chunk)
            # Ten thousand channels that wait, each with what it read last, are hundreds of megabytes.
            del chunk
            await self._intake.pace(self._machine_id, size_bytes=size_bytes, frames=frames)
            # Where there is always more to read nothing above waits, and blank lines become nothing that would.
            await asyncio.sleep(0)

    async def take_what_has_arrived(self) -> None:
        """On stopping: what QEMU had handed over would be lost with the connection.

        Bounded, for the spool may be full and a guest may write for ever.
        """
        try:
            async with asyncio.timeout(LAST_READ_SECONDS):
                await self._hand_over()
                while chunk := self._connection.recv(READ_BYTES):
                    await self._take(chunk)
                    # Without a turn of the loop no time is ever over.
                    await asyncio.sleep(0)
        except OSError:  # nothing more has arrived; or the time is over
            pass

    def close(self) -> None:
        """Close the socket; lines that are lost with it are counted."""
        for _ in range(len(self._lines) + bool(self._framer.pending_bytes)):
            self._intake.refuse("cut_off")
        self._connection.close()

    def say(self, lines: Sequence[bytes]) -> None:
        """Send without waiting: acknowledgements are cumulative, a later one covers one that found no room."""
        for line in lines:
            if len(self._unsent) < READ_BYTES:
                self._unsent += self._wrapped(line) + b"\n"
        try:
            sent = self._connection.send(self._unsent) if self._unsent else 0
        except OSError:
            return
        del self._unsent[:sent]

    async def _take(self, chunk: bytes) -> int:
        """Hand on what a chunk completes; gives the number of its lines."""
        lines = self._framer.feed(chunk)
        if lines and self._is_first_line:
            self._is_first_line = False
            if not isinstance(lines[0], Oversize) and not schema.is_whole(lines[0]):
                self._intake.refuse("fragment")
                del lines[0]
        self._lines.extend(lines)
        await self._hand_over()
        return len(lines)

    async def _hand_over(self) -> None:
        while self._lines:
            some = [self._lines.popleft() for _ in range(min(LINES_AT_ONCE, len(self._lines)))]
            self.say(await self._intake.accept(self._machine_id, some))
            # Lines that become nothing do not wait for the spool: nobody full of them may keep the loop to itself.
            await asyncio.sleep(0)


async def _connected(path: Path) -> socket.socket:
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise SourceLost(f"{path}: {exc.strerror}") from exc
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(connection, str(path))
    except PermissionError as exc:
        connection.close()
        raise SourceLost(f"{path}: permission denied; guestd's user must be in the group that owns the socket") from exc
    except OSError as exc:  # a TimeoutError is one too
        connection.close()
        raise SourceLost(f"{path}: {exc.strerror or 'no answer'}") from exc
    except BaseException:
        connection.close()
        raise
    return connection
