"""`guestd agent`: samples this machine and delivers every sample to guestd at least once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from guestd.agent.applications import ApplicationWatch, UsageState, read_usage_state, write_usage_state
from guestd.agent.collect import Collector
from guestd.agent.hostlines import pass_through
from guestd.agent.mqtt import Address, serve_broker
from guestd.agent.outbox import Outbox
from guestd.agent.signals import run_until_signal
from guestd.agent.transport import ReliableSender, listen, serve_port, serve_socket
from guestd.core.secrets import read_secret
from guestd.wire.signing import SignedLineVerifier

# Time for CPU and disks to have a rate in the first message.
FIRST_SAMPLE_SECONDS = 1.0
# The host may request a sample at any time, and gets no more than one in this time.
SHORTEST_INTERVAL_SECONDS = 1.0
# At most this much of the applications' minutes is lost when the machine crashes.
SAVE_SECONDS = 60.0

Result = TypeVar("Result")
_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


@dataclass(frozen=True, slots=True)
class VirtioPort:
    """A virtio-serial port of this guest."""

    device: Path

    def __str__(self) -> str:
        return str(self.device)


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket that the agent serves in QEMU's place."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker, and the id that this machine has in the store: on a channel the host knows it."""

    address: Address
    machine_id: uuid.UUID

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Options:
    """What `guestd agent` takes. `most_processes` None: all; `state` None: application minutes are not kept."""

    target: VirtioPort | UnixSocket | Broker
    interval_seconds: float
    most_processes: int | None
    state: Path | None
    secret_file: Path | None
    buffer_bytes: int


def run(options: Options) -> int:
    """Report until SIGTERM or SIGINT; 0, or 1 when the socket cannot be served or the state file not be written."""
    try:
        with ExitStack() as open_:
            asyncio.run(_run(options, open_))
    except OSError as exc:
        _log.error("agent stopped: fix the socket or file that the error names, then start it again", error=str(exc))
        return 1
    return 0


async def _run(options: Options, open_: ExitStack) -> None:
    requested = asyncio.Event()
    outbox = Outbox(str(uuid.uuid4()), options.buffer_bytes)
    sender = ReliableSender(outbox, on_request=requested.set, unwrap=_make_unwrap(options.secret_file))
    usage = read_usage_state(options.state)
    if options.state is not None:
        # A file that cannot be written is better found now than at the end.
        write_usage_state(options.state, usage)
    reporting = _report_to(options.target, sender, open_)
    _log.info("agent started", to=str(options.target), boot_id=sender.outbox.boot_id)
    collector = Collector(ApplicationWatch(usage), options.most_processes)
    # A sample can take seconds, and acknowledgements must not wait for it: the host would count as gone. One thread, so
    # that the state is never written while a sample changes it.
    thread = open_.enter_context(ThreadPoolExecutor(1, "sample"))

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reporting, name="report")
            tasks.create_task(
                post_samples(collector.body, thread, sender, requested, options.interval_seconds), name="sample"
            )
            if options.state is not None:
                tasks.create_task(_save(options.state, usage, thread), name="save")

    await run_until_signal(work())
    if options.state is not None:
        await _run_in(thread, partial(write_usage_state, options.state, usage))
    _log.info("agent stopped", acknowledged=sender.outbox.acknowledged, unacknowledged=sender.outbox.held_lines)


def _report_to(
    target: VirtioPort | UnixSocket | Broker, sender: ReliableSender, open_: ExitStack
) -> Coroutine[Any, Any, None]:
    match target:
        case Broker(address, machine_id):
            return serve_broker(address, machine_id, sender)
        case VirtioPort(device):
            return serve_port(device, sender)
        case UnixSocket(path):
            listener = open_.enter_context(listen(path))
            open_.callback(path.unlink, missing_ok=True)
            return serve_socket(listener, sender)


def _make_unwrap(secret_file: Path | None) -> Callable[[bytes], bytes | None]:
    """The reader of host lines: with a secret it accepts signed lines only, and logs each reason for a refusal once."""
    if secret_file is None:
        return pass_through
    verifier = SignedLineVerifier(read_secret(secret_file, "--secret-file"))
    reported: set[str] = set()

    def unwrap(line: bytes) -> bytes | None:
        try:
            return verifier.verify(line, time.time_ns() // 1_000_000)
        except ValueError as exc:
            if str(exc) not in reported:
                reported.add(str(exc))
                _log.warning(
                    "host line ignored: signature check failed; compare --secret-file with `guestd secret`, and the "
                    "clocks",
                    reason=str(exc),
                )
            return None

    return unwrap


async def _save(state: Path, usage: UsageState, thread: Executor) -> None:
    """Write the usage state now and then; a disk that is full for a while costs no more than that."""
    while True:
        await asyncio.sleep(SAVE_SECONDS)
        try:
            await _run_in(thread, partial(write_usage_state, state, usage))
        except OSError as exc:
            _log.warning(
                "state file not written: application minutes stay in memory, retrying",
                file=str(state), error=str(exc), retry_seconds=SAVE_SECONDS,
            )  # fmt: skip


async def post_samples(
    take_sample: Callable[[], bytes],
    thread: Executor,
    sender: ReliableSender,
    requested: asyncio.Event,
    interval_seconds: float,
) -> None:
    """Post a sample at every interval, and on request; `take_sample` runs in the thread."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(FIRST_SAMPLE_SECONDS)
    while True:
        due = loop.time() + interval_seconds
        sender.post(await _run_in(thread, take_sample))
        await asyncio.sleep(SHORTEST_INTERVAL_SECONDS)
        try:
            async with asyncio.timeout_at(due):
                await requested.wait()
        except TimeoutError:
            continue
        finally:
            requested.clear()


async def _run_in(thread: Executor, call: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(thread, call)
