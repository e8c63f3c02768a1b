"""`guestd agent`: watches the Linux machine it runs on and tells guestd, losing nothing on the way."""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog

from guestd.agent.applications import ApplicationWatch, Books, read_books, write_books
from guestd.agent.collect import Collector
from guestd.agent.hostlines import as_it_is
from guestd.agent.mqtt import add_broker_arguments, attend_broker, broker_of
from guestd.agent.outbox import LINE_LIMIT_BYTES, Outbox
from guestd.agent.signals import until_signal
from guestd.agent.transport import Sender, attend, listen, serve
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret
from guestd.wire.signing import Opener

__all__ = ["add_arguments", "run"]

DEVICE = Path("/dev/virtio-ports/org.infinibay.agent")
BUFFER_BYTES = 8 * 1024 * 1024
# Time for CPU and disks to have a rate in the first message.
FIRST_SAMPLE_SECONDS = 1.0
# The host may ask for a sample at any time, and gets no more than this.
SHORTEST_INTERVAL_SECONDS = 1.0
# So much of the applications' time is lost at most when the machine crashes.
SAVE_SECONDS = 60.0

DESCRIPTION = """\
Reports this machine to guestd every INTERVAL seconds: CPU, memory, disks, network, processes, ports, applications and
services. Each line is kept until guestd has it on disk, and is sent again when a connection or guestd itself fails.

In a guest it writes to the virtio-serial port that the host reads. With --listen it serves a unix socket in QEMU's
place, so that a host can watch itself. With --mqtt it publishes to a broker that guestd subscribes to.
"""
EPILOG = """\
examples:
  guestd agent --state /var/lib/guestd-agent/minutes.json
  guestd agent --listen run/channels/<machine id>.socket --interval 5
  guestd agent --mqtt broker:8883 --mqtt-ca ca.pem --mqtt-user <machine id> --mqtt-password-file FILE \\
    --machine-id <machine id>
"""

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `guestd agent` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    channel = parser.add_mutually_exclusive_group()
    device_help = f"virtio-serial port (default: {DEVICE})"
    channel.add_argument("--device", type=Path, metavar="PATH", default=DEVICE, help=device_help)
    listen_help = "serve this unix socket instead; one client at a time"
    channel.add_argument("--listen", type=Path, metavar="SOCKET", help=listen_help)
    mqtt_help = "publish to this broker instead, as --machine-id"
    channel.add_argument("--mqtt", metavar="HOST[:PORT]", help=mqtt_help)
    add_broker_arguments(parser)
    add = parser.add_argument
    machine_help = "this machine's id in the store, for --mqtt (on a channel the host knows it)"
    add("--machine-id", type=uuid.UUID, metavar="UUID", help=machine_help)
    add("--interval", type=_interval, default=30.0, metavar="SECONDS", help="between samples (default: 30)")
    processes_help = "how many processes to report, the busiest first (default: all)"
    add("--processes", type=_process_count, default=None, metavar="N|all", help=processes_help)
    add("--state", type=Path, metavar="FILE", help="keeps application minutes over restarts (default: not kept)")
    buffer_help = f"for lines that guestd has not got yet (default: {BUFFER_BYTES}, 8 MiB)"
    signed_help = "this machine's secret: only lines of the host that are signed with it are taken"
    add("--secret-file", type=Path, metavar="FILE", help=signed_help)
    add("--buffer-bytes", type=_buffer_bytes, default=BUFFER_BYTES, metavar="BYTES", help=buffer_help)


def run(arguments: argparse.Namespace) -> int:
    """Report until SIGTERM or SIGINT; 0, or 1 when the socket cannot be served or the state not be written."""
    try:
        with ExitStack() as open_:
            asyncio.run(_run(arguments, open_))
    except OSError as exc:
        _log.error("cannot go on", why=str(exc))
        return 1
    return 0


async def _run(arguments: argparse.Namespace, open_: ExitStack) -> None:
    asked = asyncio.Event()
    outbox = Outbox(str(uuid.uuid4()), arguments.buffer_bytes)
    sender = Sender(outbox, on_request=asked.set, opened=_opening(arguments.secret_file))
    books = read_books(arguments.state)
    if arguments.state is not None:
        # A place that cannot be written is better found now than at the end.
        write_books(arguments.state, books)
    speaking = _speaking(arguments, sender, open_)
    _log.info(
        "reporting", to=str(arguments.mqtt or arguments.listen or arguments.device), boot_id=sender.outbox.boot_id
    )
    collector = Collector(ApplicationWatch(books), arguments.processes)

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speaking, name="speak")
            tasks.create_task(_sample(collector, sender, asked, arguments.interval), name="sample")
            if arguments.state is not None:
                tasks.create_task(_save(arguments.state, books), name="save")

    await until_signal(work())
    if arguments.state is not None:
        write_books(arguments.state, books)
    _log.info("ended", acknowledged=sender.outbox.acknowledged, unacknowledged=sender.outbox.held_lines)


def _speaking(arguments: argparse.Namespace, sender: Sender, open_: ExitStack) -> Coroutine[Any, Any, None]:
    if arguments.mqtt is not None:
        if arguments.machine_id is None:
            raise ConfigError("--mqtt: a broker does not know which machine this is; --machine-id says it")
        return attend_broker(broker_of(arguments), arguments.machine_id, sender)
    if arguments.listen is None:
        return attend(arguments.device, sender)
    listener = open_.enter_context(listen(arguments.listen))
    open_.callback(arguments.listen.unlink, missing_ok=True)
    return serve(listener, sender)


def _opening(secret_file: Path | None) -> Callable[[bytes], bytes | None]:
    """How a line of the host is read; with a secret only what is signed with it, and what is not is logged once."""
    if secret_file is None:
        return as_it_is
    opener = Opener(read_secret(secret_file, "--secret-file"))
    reported: set[str] = set()

    def opened(line: bytes) -> bytes | None:
        try:
            return opener.payload(line, time.time_ns() // 1_000_000)
        except ValueError as exc:
            if str(exc) not in reported:
                reported.add(str(exc))
                _log.warning("a line of the host was not taken", why=str(exc))
            return None

    return opened


async def _save(state: Path, books: Books) -> None:
    """Write the books every so often; a disk that is full for a while costs no more than that."""
    while True:
        await asyncio.sleep(SAVE_SECONDS)
        try:
            write_books(state, books)
        except OSError as exc:
            _log.warning("state not saved", file=str(state), why=str(exc))


async def _sample(collector: Collector, sender: Sender, asked: asyncio.Event, interval_seconds: float) -> None:
    """Post a sample every so often, and when asked."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(FIRST_SAMPLE_SECONDS)
    while True:
        due = loop.time() + interval_seconds
        sender.post(collector.body())
        await asyncio.sleep(SHORTEST_INTERVAL_SECONDS)
        try:
            async with asyncio.timeout_at(due):
                await asked.wait()
        except TimeoutError:
            continue
        finally:
            asked.clear()


def _interval(text: str) -> float:
    seconds = float(text)
    if not SHORTEST_INTERVAL_SECONDS <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least {SHORTEST_INTERVAL_SECONDS:g}")
    return seconds


def _process_count(text: str) -> int | None:
    if text == "all":
        return None
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _buffer_bytes(text: str) -> int:
    size = int(text)
    if size < LINE_LIMIT_BYTES:
        raise argparse.ArgumentTypeError(f"must be at least one line, {LINE_LIMIT_BYTES}")
    return size
