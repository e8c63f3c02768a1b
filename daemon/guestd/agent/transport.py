"""The channel between an outbox and its reader on the host: a unix socket or a virtio-serial port.

What a channel does and what is done about it here:

* a write takes only a part (32 KiB on virtio-serial): go on where it stopped; nothing at all (EAGAIN): wait
  until writable;
* the host goes away: the conversation ends, and the next one starts from the first line that was not
  acknowledged, after a lone newline that ends whatever line was cut short;
* a virtio-serial port without a host is always readable, at its end, and refuses writes: watching it would
  burn the CPU, so it is asked now and then, by writing that newline.
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

from guestd.agent.hostlines import HostLine, HostLines, as_it_is
from guestd.agent.outbox import Outbox

READ_BYTES = 65536
# What Linux leaves of sockaddr_un for the path, without the final zero.
SOCKET_PATH_BYTES = 107
# A host that comes back is noticed within a second; a port that nobody opens costs nothing to speak of.
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


class Sender:
    """An outbox that wakes whoever waits for it: the writer for lines, their producer for answers."""

    def __init__(
        self,
        outbox: Outbox,
        on_request: Callable[[], None],
        opened: Callable[[bytes], bytes | None] = as_it_is,
    ) -> None:
        self.outbox = outbox
        self.opened = opened
        self._on_request = on_request
        self._to_write = asyncio.Event()
        self._acknowledged = asyncio.Event()

    def post(self, body: bytes) -> None:
        """Add a message; a writer, when there is one, writes it."""
        self.outbox.add(body)
        self._to_write.set()

    def hear(self, line: HostLine) -> None:
        """Act on a line of the host."""
        now, boot_id = time.monotonic(), self.outbox.boot_id
        if line.type == "Metrics":
            self._on_request()
        elif line.type == "ack" and line.resend:
            self.outbox.resend_after(line.boot_id, line.seq, now, line.mark)
        elif line.type == "ack":
            self.outbox.acknowledge(line.boot_id, line.seq, now, line.mark)
        if line.type == "ack":
            self._to_write.set()
            self._acknowledged.set()
        if self.outbox.boot_id != boot_id:
            _log.warning(
                "this machine was put back to an earlier state: what is held is sent under a new boot_id",
                boot_id=self.outbox.boot_id, lines=self.outbox.held_lines,
            )  # fmt: skip

    def taken(self, seq: int) -> None:
        """Forget the lines up to this one: a broker has them."""
        self.outbox.taken(seq)
        self._acknowledged.set()

    def wake(self) -> None:
        """Let a writer look again."""
        self._to_write.set()

    async def woken(self) -> None:
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

    async def at_most(self, lines: int) -> None:
        """Wait until no more than so many lines are held."""
        while self.outbox.held_lines > lines:
            self._acknowledged.clear()
            await self._acknowledged.wait()


def _seconds_until(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - time.monotonic())


async def converse(fd: int, sender: Sender) -> None:
    """Speak docs/wire.md on a non-blocking descriptor until the other side is gone."""
    sender.outbox.restart()
    hearing = asyncio.create_task(_hear(fd, sender), name=f"hear {fd}")
    saying = asyncio.create_task(_say(fd, sender), name=f"say {fd}")
    try:
        done, _ = await asyncio.wait((hearing, saying), return_when=asyncio.FIRST_COMPLETED)
        for half in done:
            half.result()
        # A host that takes nothing any more may have said something before it left.
        await hearing
    finally:
        hearing.cancel()
        saying.cancel()
        await asyncio.wait((hearing, saying))


async def _hear(fd: int, sender: Sender) -> None:
    """Take what the host says until it is gone."""
    lines = HostLines(sender.opened)
    with suppress(OSError):
        while chunk := await _read(fd):
            for line in lines.feed(chunk):
                sender.hear(line)


async def _say(fd: int, sender: Sender) -> None:
    """Write what there is to write until the host is gone."""
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
    """A unix socket that listens at `path`, in the place of one that a killed agent left behind.

    Raises OSError when somebody serves it already, when something else is there, or when it cannot be made.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise OSError(
            errno.ENAMETOOLONG, f"longer than the {SOCKET_PATH_BYTES} bytes of a socket's path", os.fspath(path)
        )
    _refuse_if_taken(path)
    # Under its own name it appears listening, so that nobody who watches the directory finds it refusing.
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


def _refuse_if_taken(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", os.fspath(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another program serves it", os.fspath(path))


async def serve(listener: socket.socket, sender: Sender) -> None:
    """Serve one client after the other, for ever, as QEMU does for a channel."""
    loop = asyncio.get_running_loop()
    while True:
        client, _ = await loop.sock_accept(listener)
        with client:
            client.setblocking(False)
            await converse(client.fileno(), sender)


async def attend(device: Path, sender: Sender) -> None:
    """Speak over a virtio-serial port, for ever; a port that is unplugged is opened again when it is back."""
    trouble = ""
    while True:
        try:
            fd = _open_port(device)
            try:
                trouble = ""
                await _attend_open(fd, sender)
            finally:
                os.close(fd)
        except OSError as exc:
            if str(exc) != trouble:
                trouble = str(exc)
                _log.warning("port not usable, trying again", device=str(device), why=trouble)
        await asyncio.sleep(LONGEST_PAUSE_SECONDS)


def _open_port(device: Path) -> int:
    fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISCHR(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOTTY, "not a character device", os.fspath(device))
    return fd


async def _attend_open(fd: int, sender: Sender) -> None:
    """One conversation after the other; raises OSError when the port itself is gone."""
    while True:
        await _host_present(fd)
        await converse(fd, sender)
        await asyncio.sleep(FIRST_PAUSE_SECONDS)


async def _host_present(fd: int) -> None:
    """Wait until a host has the port open: without one the port takes nothing, not even a lone newline."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            os.write(fd, b"\n")
        except BlockingIOError:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            return
