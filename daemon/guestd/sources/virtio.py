"""Virtio-serial channels: QEMU serves one unix socket a machine, guestd is its client.

A directory holds `<Machine.id>.socket`. What should be read (files there, machines that the store knows) is compared
with what is being read; readers are opened and closed by the difference. The directory's events, the roster and a timer
only wake the comparison.

What a channel is like (measured): connecting proves nothing, for a second client waits in QEMU's backlog and hears
nothing; a guest's reset gives no end of stream; a first line may be the rest of one; what was not read when the
connection closes is gone, so on stopping what has arrived is still read.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import socket
import stat
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import structlog
import watchfiles

from guestd import answers, messages
from guestd.errors import SourceLost
from guestd.framing import Framer, Oversize
from guestd.intake import Intake
from guestd.lifecycle import Backoff, retrying
from guestd.roster import Roster

log = structlog.get_logger()

READ_BYTES = 64 * 1024
# A guest that writes nothing but short lines is accepted, and paced, by so many of them.
LINES_AT_ONCE = 256
CONNECT_SECONDS = 5.0
LAST_READ_SECONDS = 2.0
RESCAN_SECONDS = 5.0
# Not to connect to machines that the store will not know; not longer, for what a guest writes unread may be lost.
FIRST_ROSTER_SECONDS = 1.0
_SOCKET_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.socket")


@dataclass(frozen=True, slots=True)
class Channel:
    """One socket file. Made anew under the same name it is another channel; a changed owner leaves it the same."""

    machine_id: UUID
    path: Path
    inode: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class Open:
    """Begin to read."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Close:
    """Stop reading: the file went away, was replaced, or the store no longer knows the machine."""

    channel: Channel


def plan(wanted: Mapping[UUID, Channel], running: Mapping[UUID, Channel]) -> tuple[Open | Close, ...]:
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
    lost: Callable[[], None]


class Virtio:
    """All channels of one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        intake: Intake,
        roster: Roster,
        gauges: Gauges,
        max_frame_bytes: int,
        wrapped: Callable[[UUID, bytes], bytes],
    ) -> None:
        self._directory = directory
        self._wrapped = wrapped
        self._intake = intake
        self._roster = roster
        self._gauges = gauges
        self._max_frame_bytes = max_frame_bytes
        self._running: dict[UUID, tuple[Channel, asyncio.Task[None]]] = {}
        self._unknown: frozenset[UUID] = frozenset()
        self._look = asyncio.Event()
        self.connected = 0

    async def run(self) -> None:
        """Read all channels, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_directory(), name="virtio-watch")
            tasks.create_task(self._watch_roster(), name="virtio-roster")
            await _woken(self._roster.tried, FIRST_ROSTER_SECONDS)
            while True:
                self._look.clear()
                wanted = await asyncio.to_thread(_found, self._directory)
                if wanted is not None:
                    running = {key: channel for key, (channel, _) in self._running.items()}
                    for action in plan(self._known(wanted), running):
                        await self._apply(action, tasks)
                self._gauges.channels(len(self._running))
                await _woken(self._look, RESCAN_SECONDS)

    def _known(self, wanted: dict[UUID, Channel]) -> dict[UUID, Channel]:
        unknown = frozenset(machine_id for machine_id in wanted if not self._roster.knows(machine_id))
        for machine_id in unknown - self._unknown:
            log.warning("a channel of a machine that the store does not know is not read", machine=str(machine_id))
        self._unknown = unknown
        self._gauges.unknown_machines(len(unknown))
        return {machine_id: channel for machine_id, channel in wanted.items() if machine_id not in unknown}

    async def _apply(self, action: Open | Close, tasks: asyncio.TaskGroup) -> None:
        match action:
            case Open(channel):
                reader = tasks.create_task(self._read(channel), name=f"virtio-{channel.machine_id}")
                self._running[channel.machine_id] = (channel, reader)
            case Close(channel):
                _, reader = self._running.pop(channel.machine_id)
                reader.cancel()
                # Its last lines are on disk before a successor may read.
                await asyncio.wait([reader])

    async def _watch_roster(self) -> None:
        while True:
            await self._roster.changed.wait()
            self._roster.changed.clear()
            self._look.set()

    async def _watch_directory(self) -> None:
        await retrying(
            self._directory_events,
            expected=SourceLost,
            backoff=Backoff(cap_seconds=10),
            lost=lambda why, seconds: log.warning(
                "the channel directory cannot be watched", error=str(why), retry=seconds
            ),
        )

    async def _directory_events(self) -> None:
        try:
            async for _ in watchfiles.awatch(
                self._directory, watch_filter=None, recursive=False, debounce=100, step=50, rust_timeout=5000
            ):
                self._look.set()
        except (FileNotFoundError, PermissionError, RuntimeError) as why:
            raise SourceLost(f"virtio.directory {self._directory}: {why}") from why

    async def _read(self, channel: Channel) -> None:
        def lost(why: Exception, seconds: float) -> None:
            self._gauges.lost()
            log.info("channel lost", machine=str(channel.machine_id), error=str(why), retry_seconds=round(seconds, 1))

        await retrying(lambda: self._connection(channel), expected=SourceLost, backoff=Backoff(), lost=lost)

    async def _connection(self, channel: Channel) -> None:
        """One connection's life."""
        connection = await _connected(channel.path)
        self._count_connected(1)
        machine_id = channel.machine_id
        wrapped = functools.partial(self._wrapped, machine_id)
        reader = _Reader(machine_id, connection, self._intake, Framer(self._max_frame_bytes), wrapped)
        reader.say([answers.COLLECT])
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
            except OSError as why:
                raise SourceLost(why.strerror) from why
            if not chunk:
                raise SourceLost("closed by the other side")
            frames = await self._take(chunk)
            await self._intake.pace(self._machine_id, size_bytes=len(chunk), frames=frames)

    async def take_what_has_arrived(self) -> None:
        """On stopping: what QEMU had handed over would be lost with the connection.

        Bounded, for the spool may be full and a guest may write for ever.
        """
        try:
            async with asyncio.timeout(LAST_READ_SECONDS):
                await self._hand_over()
                while chunk := self._connection.recv(READ_BYTES):
                    await self._take(chunk)
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
            if not isinstance(lines[0], Oversize) and not messages.is_whole(lines[0]):
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


async def _woken(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


async def _connected(path: Path) -> socket.socket:
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as why:
        raise SourceLost(f"{path}: {why.strerror}") from why
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(connection, str(path))
    except PermissionError as why:
        connection.close()
        raise SourceLost(f"{path}: permission denied; guestd's user must be in the group that owns the socket") from why
    except OSError as why:  # a TimeoutError is one too
        connection.close()
        raise SourceLost(f"{path}: {why.strerror or 'no answer'}") from why
    except BaseException:
        connection.close()
        raise
    return connection


def _found(directory: Path) -> dict[UUID, Channel] | None:
    """The channels that are in the directory; an absent directory holds none, one that cannot be read tells nothing."""
    channels: dict[UUID, Channel] = {}
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return channels
    except OSError as why:
        log.warning("the channel directory cannot be read", directory=str(directory), error=why.strerror)
        return None
    for entry in entries:
        match = _SOCKET_NAME.fullmatch(entry.name)
        if match is None:
            continue
        try:
            status = entry.stat()
        except OSError:  # gone between listing and looking
            continue
        if stat.S_ISSOCK(status.st_mode):
            machine_id = UUID(match.group(1))
            channels[machine_id] = Channel(machine_id, Path(entry.path), status.st_ino, status.st_mtime_ns)
    return channels
