"""Virtio-serial channels: QEMU serves one unix socket a machine, guestd is its client.

The channels that discovery finds are compared with those that are being read; readers are opened and closed by the
difference. Discovery's events, the machine registry and a timer only wake the comparison.

How a channel behaves (measured): a successful connect proves nothing, for a second client waits in QEMU's backlog and
receives nothing; a guest's reset gives no end of stream; a first line may be the rest of one; what was not read when
the connection closes is lost, so on stopping what has arrived is still read.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import structlog

from guestd.core.descriptors import KEPT_FROM_CHANNELS, is_kept
from guestd.core.errors import SourceLost
from guestd.core.machines import MachineRegistry
from guestd.core.supervision import Supervisor
from guestd.core.tasks import Backoff, run_with_retry, wait_for_event
from guestd.ingest.channel_plan import ChannelSocket, Close, Open, plan_channels
from guestd.ingest.discovery import ChannelDiscovery
from guestd.ingest.gate import UNMEASURED_BYTES, Gate
from guestd.ingest.partial_lines import PartialLines
from guestd.telemetry.registry import ChannelMetrics
from guestd.wire import replies
from guestd.wire.framing import Framer, Oversize
from guestd.wire.line import FRAGMENT, METRICS, Line, is_whole, read_first_line, read_lines

log = structlog.get_logger()

READ_BYTES = 64 * 1024
# Lines of a guest are accepted this many at a time, so that short ones do not block the event loop.
LINES_AT_ONCE = 256
CONNECT_SECONDS = 5.0
LAST_READ_SECONDS = 2.0
RESCAN_SECONDS = 5.0
# Time for the machine registry to load, so that unknown machines are not read; short, for unread lines may be lost.
REGISTRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Running:
    """A channel that is being read, and the task that reads it."""

    channel: ChannelSocket
    reader: asyncio.Task[None]


class VirtioSource:
    """Reads all channels of this host."""

    def __init__(
        self,
        discovery: ChannelDiscovery,
        *,
        gate: Gate,
        machine_registry: MachineRegistry,
        metrics: ChannelMetrics,
        max_frame_bytes: int,
        max_partial_bytes: int,
        wrap: Callable[[UUID, bytes], bytes],
        supervisor: Supervisor,
    ) -> None:
        self._discovery = discovery
        self._supervisor = supervisor
        self._wrap = wrap
        self._gate = gate
        self._machine_registry = machine_registry
        self._metrics = metrics
        self._max_frame_bytes = max_frame_bytes
        self._partial_lines = PartialLines(max_partial_bytes)
        self._running: dict[UUID, _Running] = {}
        self._unknown: frozenset[str] = frozenset()
        self._rescan = asyncio.Event()
        self.connected = 0
        metrics.connected.set_function(lambda: self.connected)

    async def run(self) -> None:
        """Read all channels until cancelled.

        Each channel is supervised by itself, and discovery apart from them: no failure closes another channel.
        """
        self._running.clear()  # the readers of an earlier run have ended with it
        async with asyncio.TaskGroup() as tasks:
            for name, task in {
                "channel-watch": lambda: self._discovery.watch(self._rescan.set),
                "channel-registry": self._watch_registry,
                "channel-discovery": lambda: self._follow_discovery(tasks),
            }.items():
                tasks.create_task(self._supervisor.run(name, task), name=name)

    async def _follow_discovery(self, tasks: asyncio.TaskGroup) -> None:
        await wait_for_event(self._machine_registry.attempted, REGISTRY_SECONDS)
        while True:
            self._rescan.clear()
            found = await self._discovery.discover()
            if found is not None:
                self._report(found.unknown)
                running = {key: each.channel for key, each in self._running.items()}
                await self._apply(plan_channels(self._collected(found.channels), running), tasks)
            self._metrics.channels.set(len(self._running))
            await wait_for_event(self._rescan, RESCAN_SECONDS)

    def _report(self, unknown: frozenset[str]) -> None:
        for machine in sorted(unknown - self._unknown):
            log.warning("machine not in the store, not reading its channel; add the Machine row", machine=machine)
        self._unknown = unknown
        self._metrics.unknown_machines.set(len(unknown))

    def _collected(self, channels: Mapping[UUID, ChannelSocket]) -> Mapping[UUID, ChannelSocket]:
        collected = {key: channel for key, channel in channels.items() if self._machine_registry.collects(key)}
        self._metrics.not_collected.set(len(channels) - len(collected))
        return collected

    async def _apply(self, actions: Sequence[Open | Close], tasks: asyncio.TaskGroup) -> None:
        closing = [self._running.pop(each.channel.machine_id).reader for each in actions if isinstance(each, Close)]
        for reader in closing:
            reader.cancel()
        if closing:
            # Their last lines must be on disk before a successor may read; in parallel, for each may take a while.
            await asyncio.wait(closing)
        for action in actions:
            if isinstance(action, Open):
                channel = action.channel
                reading = self._supervisor.run(
                    "channel", functools.partial(self._read, channel), subject=str(channel.machine_id)
                )
                reader = tasks.create_task(reading, name=f"virtio-{channel.machine_id}")
                self._running[channel.machine_id] = _Running(channel, reader)

    async def _watch_registry(self) -> None:
        while True:
            await self._machine_registry.changed.wait()
            self._machine_registry.changed.clear()
            self._rescan.set()

    async def _read(self, channel: ChannelSocket) -> None:
        def lost(exc: Exception, seconds: float) -> None:
            self._metrics.lost.inc()
            log.info(
                "channel lost, reconnecting",
                machine=str(channel.machine_id),
                error=str(exc),
                retry_seconds=round(seconds, 1),
            )

        await run_with_retry(
            lambda: self._run_connection(channel), expected=SourceLost, backoff=Backoff(), on_failure=lost
        )

    async def _run_connection(self, channel: ChannelSocket) -> None:
        """One connection's life."""
        connection = await _connect(channel.path)
        self.connected += 1
        machine_id = channel.machine_id
        wrap = functools.partial(self._wrap, machine_id)
        framer = Framer(self._max_frame_bytes)
        reader = _Reader(machine_id, connection, self._gate, framer, self._partial_lines, wrap)
        try:
            reader.write([replies.COLLECT])
            await reader.run()
        except asyncio.CancelledError:
            await reader.read_rest()
            raise
        finally:
            self.connected -= 1
            reader.close()


class _Reader:
    """One connection: bytes to lines to the gate, and the wrapped replies back."""

    def __init__(
        self,
        machine_id: UUID,
        connection: socket.socket,
        gate: Gate,
        framer: Framer,
        partial_lines: PartialLines,
        wrap: Callable[[bytes], bytes],
    ) -> None:
        self._wrap = wrap
        self._machine_id = machine_id
        self._connection = connection
        self._gate = gate
        self._framer = framer
        self._partial_lines = partial_lines
        self._is_given_up = False
        self._is_stopping = False
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
                await self._end(exc.strerror or str(exc))
            if not chunk:
                await self._end("closed by the other side")
            if self._is_given_up:
                # In the middle of the line. Our agent sends it again to the next connection.
                raise SourceLost("its line did not end, and other channels needed the memory (virtio.partial_bytes)")
            frames, size_bytes = await self._accept(chunk), len(chunk)
            # Ten thousand waiting channels, each with the chunk that it read last, would use hundreds of megabytes.
            del chunk
            await self._gate.pace(self._machine_id, size_bytes=size_bytes, frames=frames)
            # Yield to the event loop: where there is always more to read, nothing above waits.
            await asyncio.sleep(0)

    async def _end(self, reason: str) -> NoReturn:
        frames = await self._accept_rest()
        await self._gate.pace(self._machine_id, size_bytes=0, frames=frames)
        raise SourceLost(reason)

    async def read_rest(self) -> None:
        """On stopping, read what QEMU has passed on: it would be lost with the connection.

        Bounded in time, for the spool may be full and a guest may never stop writing.
        """
        self._is_stopping = True
        try:
            async with asyncio.timeout(LAST_READ_SECONDS):
                await self._pass_on()
                with suppress(OSError):  # nothing more has arrived
                    while not self._is_given_up and (chunk := self._connection.recv(READ_BYTES)):
                        await self._accept(chunk)
                        # Yield to the event loop, for the timeout to take effect.
                        await asyncio.sleep(0)
                await self._accept_rest()
        except TimeoutError:
            pass

    def give_up(self) -> None:
        """Free the memory of the line that has not arrived whole; what follows of it ends the connection."""
        self._framer.take_rest()
        self._gate.refuse("memory")
        self._is_given_up = True

    def close(self) -> None:
        """Close the socket; lines that are lost with it are counted."""
        self._partial_lines.note(self, 0, is_new=True)
        if lost_lines := len(self._lines) + bool(self._framer.pending_bytes):
            self._gate.refuse("cut_off", lost_lines)
        self._connection.close()

    def write(self, lines: Sequence[bytes]) -> None:
        """Send without waiting: acknowledgements are cumulative, a later one covers one that was dropped here."""
        for line in lines:
            if len(self._unsent) < READ_BYTES:
                self._unsent += self._wrap(line) + b"\n"
        try:
            sent = self._connection.send(self._unsent) if self._unsent else 0
        except OSError:
            return
        del self._unsent[:sent]

    async def _accept(self, chunk: bytes) -> int:
        """Pass the lines that a chunk completes to the gate; returns how many."""
        lines = self._framer.feed(chunk)
        self._partial_lines.note(self, self._framer.kept_bytes, is_new=bool(lines))
        self._lines.extend(lines)
        return await self._pass_on()

    async def _accept_rest(self) -> int:
        """Pass on the messages that have arrived without their line end, and return how many lines were passed on.

        Half of one is lost with the connection, unless the whole one stands behind it.
        """
        rest = self._framer.take_rest()
        lines = [] if rest is None else self._read(rest)
        # The gate counts fragments, of which nothing is lost.
        passed = [each for each in lines if each.kind == FRAGMENT or (each.payload and is_whole(each.payload))]
        if lost_lines := len(lines) - len(passed):
            self._gate.refuse("cut_off", lost_lines)
        if passed:
            self.write(await self._gate.accept(self._machine_id, passed))
        return len(passed)

    async def _pass_on(self) -> int:
        passed = 0
        while self._lines:
            if not self._is_stopping:
                # They stay in `_lines` meanwhile, for `read_rest`.
                waiting = itertools.islice(self._lines, LINES_AT_ONCE)
                whole = [each for each in waiting if not isinstance(each, Oversize)]
                await self._gate.wait_for_turn(self._machine_id, whole)
            lines: list[Line] = []
            while self._lines and len(lines) < LINES_AT_ONCE:
                lines += self._read(self._lines.popleft())
            passed += len(lines)
            self.write(await self._gate.accept(self._machine_id, lines))
            # Lines of which nothing is stored do not wait for the spool: yield to the event loop between them.
            await asyncio.sleep(0)
        return passed

    def _read(self, line: bytes | Oversize) -> list[Line]:
        is_first_line, self._is_first_line = self._is_first_line, False
        is_measured = not isinstance(line, Oversize) and len(line) > UNMEASURED_BYTES
        began = time.thread_time() if is_measured else 0.0
        try:
            return read_first_line(line) if is_first_line else read_lines(line)
        except Exception as exc:
            self._gate.note_bug(self._machine_id, exc)
            return [Line(METRICS, None, None if isinstance(line, Oversize) else line)]
        finally:
            if is_measured:
                self._gate.charge_reading(self._machine_id, time.thread_time() - began)


async def _connect(path: Path) -> socket.socket:
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise SourceLost(f"{path}: {exc.strerror}") from exc
    if is_kept(connection.fileno(), KEPT_FROM_CHANNELS):
        connection.close()
        raise SourceLost(f"{path}: the last file descriptors are kept for spool and store; raise LimitNOFILE")
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
