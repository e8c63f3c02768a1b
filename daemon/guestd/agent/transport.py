"""The channel between an outbox and its reader on the host: a unix socket or a virtio-serial port.

How a channel behaves, and how this module handles it:

* a write takes only a part (32 KiB on virtio-serial): continue where it stopped; it takes nothing (EAGAIN): wait
  until writable;
* the host closes: the connection ends, and the next one starts from the first line that was not acknowledged,
  after a lone newline that ends a line that was cut short;
* a virtio-serial port without a host is always readable, at its end, and refuses writes: waiting for it would
  burn the CPU, so it is probed now and then, by writing that newline.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from guestd.agent.hostlines import HostLine, HostLines, pass_through
from guestd.agent.outbox import Outbox

READ_BYTES = 65536
# What Linux leaves of sockaddr_un for the path, without the final zero.
SOCKET_PATH_BYTES = 107
# A host that comes back is noticed within a second; a port that nobody opens costs next to no CPU.
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


class ReliableSender:
    """Delivers the lines of an outbox at least once: wakes the writer for new lines, the producer when some are
    acknowledged.
    """

    def __init__(
        self,
        outbox: Outbox,
        on_request: Callable[[], None],
        unwrap: Callable[[bytes], bytes | None] = pass_through,
    ) -> None:
        self.outbox = outbox
        self.unwrap = unwrap
        self._on_request = on_request
        self._to_write = asyncio.Event()
        self._acknowledged = asyncio.Event()
        # `dropped` and `unconfirmed` of the outbox before the buffer overflowed; None while it does not.
        self._dropped_before: tuple[int, int] | None = None

    def post(self, body: bytes) -> None:
        """Add a message; the writer, when a channel is open, writes it."""
        dropped = self.outbox.dropped, self.outbox.unconfirmed
        self.outbox.add(body, time.monotonic())
        self._to_write.set()
        if self.outbox.is_overflowing and self._dropped_before is None:
            self._dropped_before = dropped
            _log.warning(
                "buffer full: the oldest samples are dropped until guestd reads again; a larger --buffer-bytes holds "
                "more",
                held_lines=self.outbox.held_lines, held_bytes=self.outbox.held_bytes,
            )  # fmt: skip

    def handle_line(self, line: HostLine) -> None:
        """Act on a line of the host: a request for a sample, or an acknowledgement."""
        now, boot_id = time.monotonic(), self.outbox.boot_id
        if line.type == "Metrics":
            self._on_request()
        elif line.type == "ack" and line.resend:
            self.outbox.resend_after(line.boot_id, line.seq, now, line.mark)
        elif line.type == "ack":
            self.outbox.acknowledge(line.boot_id, line.seq, now, line.mark)
        if line.type == "ack":
            self._to_write.set()
            self._note_forgotten()
        if self.outbox.boot_id != boot_id:
            _log.warning(
                "machine reverted to a snapshot: unacknowledged lines are sent again under a new boot_id",
                boot_id=self.outbox.boot_id, lines=self.outbox.held_lines,
            )  # fmt: skip

    def confirm(self, seq: int) -> None:
        """Forget the lines up to this one: a broker has them."""
        self.outbox.confirm(seq)
        self._note_forgotten()

    def give_up(self, seq: int) -> None:
        """Drop this line: a broker never takes it."""
        self.outbox.give_up(seq)
        self._note_forgotten()

    def wake(self) -> None:
        """Wake the writer."""
        self._to_write.set()

    async def wait_for_wake(self) -> None:
        """Wait for `wake`, or for a line to be posted."""
        self._to_write.clear()
        await self._to_write.wait()

    async def next_line(self) -> bytes:
        """The line to write next, as soon as there is one."""
        while (line := self.outbox.next_line(time.monotonic())) is None:
            self._to_write.clear()
            try:
                async with asyncio.timeout(_seconds_until(self.outbox.resend_at)):
                    await self._to_write.wait()
            except TimeoutError:
                continue
        return line

    async def wait_until_at_most(self, lines: int) -> None:
        """Wait until no more than this many lines are unacknowledged."""
        while self.outbox.held_lines > lines:
            self._acknowledged.clear()
            await self._acknowledged.wait()

    def _note_forgotten(self) -> None:
        self._acknowledged.set()
        if self._dropped_before is not None and not self.outbox.is_overflowing:
            dropped, unconfirmed = self._dropped_before
            _log.info(
                "buffer has room again: the samples that were dropped are lost; the unconfirmed ones had been sent, "
                "and at most all of them are lost",
                dropped=self.outbox.dropped - dropped, unconfirmed=max(0, self.outbox.unconfirmed - unconfirmed),
            )  # fmt: skip
            self._dropped_before = None


def _seconds_until(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - time.monotonic())


async def run_connection(fd: int, sender: ReliableSender) -> None:
    """Run the protocol of docs/wire.md on a non-blocking descriptor until the other side closes it."""
    sender.outbox.restart()
    reading = asyncio.create_task(_read_lines(fd, sender), name=f"read {fd}")
    writing = asyncio.create_task(_write_lines(fd, sender), name=f"write {fd}")
    try:
        done, _ = await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
        for half in done:
            half.result()
        # A host that has stopped reading may have written something before it closed.
        await reading
    finally:
        reading.cancel()
        writing.cancel()
        await asyncio.wait((reading, writing))


async def _read_lines(fd: int, sender: ReliableSender) -> None:
    """Handle the lines of the host until it closes."""
    lines = HostLines(sender.unwrap)
    with suppress(OSError):
        while chunk := await _read(fd):
            for line in lines.feed(chunk):
                sender.handle_line(line)


async def _write_lines(fd: int, sender: ReliableSender) -> None:
    """Write the lines of the outbox until the host closes."""
    with suppress(OSError):
        await _write(fd, b"\n")
        while True:
            await _write(fd, await sender.next_line())


async def _read(fd: int) -> bytes:
    while True:
        await _readable(fd)
        try:
            return os.read(fd, READ_BYTES)
        except BlockingIOError:
            continue


async def _write(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await _writable(fd)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _wake(ready: asyncio.Future[None]) -> None:
    # A second event may arrive before the waiter has run.
    if not ready.done():
        ready.set_result(None)


def listen(path: Path) -> socket.socket:
    """A unix socket that listens at `path`; it replaces one that a killed agent left behind.

    Raises OSError when another program serves it, when another kind of file is there, or when it cannot be made.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise OSError(
            errno.ENAMETOOLONG, f"longer than the {SOCKET_PATH_BYTES} bytes of a socket's path", os.fspath(path)
        )
    _refuse_if_occupied(path)
    # Renamed once it listens, so that a program that watches the directory never finds it refusing.
    unnamed = path.with_name(path.name[:-1] + "~")
    unnamed.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(os.fspath(unnamed))
        # As QEMU's: one client is served, the next one waits.
        listener.listen(1)
        unnamed.replace(path)
    except OSError:
        listener.close()
        raise
    return listener


def _refuse_if_occupied(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", os.fspath(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another program serves it", os.fspath(path))


async def serve_socket(listener: socket.socket, sender: ReliableSender) -> None:
    """Serve one client after the other without end, as QEMU does for a channel."""
    loop = asyncio.get_running_loop()
    trouble = ""
    while True:
        try:
            client, _ = await loop.sock_accept(listener)
        except OSError as exc:  # no free descriptor; the client waits
            if str(exc) != trouble:
                trouble = str(exc)
                _log.warning(
                    f"client not accepted: lines stay in the buffer; retrying every {LONGEST_PAUSE_SECONDS:.0f} s",
                    error=trouble,
                )
            await asyncio.sleep(LONGEST_PAUSE_SECONDS)
            continue
        trouble = ""
        with client:
            client.setblocking(False)
            await run_connection(client.fileno(), sender)


async def serve_port(device: Path, sender: ReliableSender) -> None:
    """Report over a virtio-serial port without end; a port that was unplugged is opened again when it is back."""
    trouble = ""
    while True:
        try:
            fd = _open_port(device)
            try:
                trouble = ""
                await _serve_open_port(fd, sender)
            finally:
                os.close(fd)
        except OSError as exc:
            if str(exc) != trouble:
                trouble = str(exc)
                _log.warning(
                    f"port unusable: lines stay in the buffer; retrying every {LONGEST_PAUSE_SECONDS:.0f} s",
                    device=str(device), error=trouble,
                )  # fmt: skip
        await asyncio.sleep(LONGEST_PAUSE_SECONDS)


def _open_port(device: Path) -> int:
    fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISCHR(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOTTY, "not a character device", os.fspath(device))
    return fd


async def _serve_open_port(fd: int, sender: ReliableSender) -> None:
    """Run one connection after the other; raises OSError when the port itself is gone."""
    while True:
        await _wait_for_host(fd)
        await run_connection(fd, sender)
        await asyncio.sleep(FIRST_PAUSE_SECONDS)


async def _wait_for_host(fd: int) -> None:
    """Wait until a host has opened the port: until then the port refuses every write, even of a lone newline."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            os.write(fd, b"\n")
        except BlockingIOError:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            return
