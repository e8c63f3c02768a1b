"""`guestd agent`: samples this machine and delivers every sample to guestd at least once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from guestd.agent.broker_link import serve_broker
from guestd.agent.hostlines import pass_through
from guestd.agent.mqtt import Address
from guestd.agent.outbox import Outbox
from guestd.agent.sampling import NoSample, Sampler, SamplerOptions
from guestd.agent.signals import run_until_signal
from guestd.agent.transport import ReliableSender, listen, serve_port, serve_socket
from guestd.core.secrets import read_secret
from guestd.wire.signing import SignedLineVerifier

# The host may request a sample at any time, and gets no more than one in this time.
SHORTEST_INTERVAL_SECONDS = 1.0
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
    """Report until SIGTERM or SIGINT; 0, or 1 when the socket cannot be served."""
    try:
        with ExitStack() as open_:
            asyncio.run(_run(options, open_))
    except OSError as exc:
        _log.error("agent stopped: fix the socket that the error names, then start it again", error=str(exc))
        return 1
    return 0


async def _run(options: Options, open_: ExitStack) -> None:
    requested = asyncio.Event()
    outbox = Outbox(str(uuid.uuid4()), options.buffer_bytes)
    sender = ReliableSender(outbox, on_request=requested.set, unwrap=_make_unwrap(options.secret_file))
    state = None if options.state is None else str(options.state)
    sampler = Sampler(SamplerOptions(options.most_processes, state))
    reporting = _report_to(options.target, sender, open_)
    _log.info("agent started", to=str(options.target), boot_id=sender.outbox.boot_id)

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reporting, name="report")
            tasks.create_task(post_samples(sampler.sample, sender, requested, options.interval_seconds), name="sample")

    await run_until_signal(work())
    await sampler.close()
    _log.info(
        "agent stopped", acknowledged=outbox.acknowledged, unacknowledged=outbox.held_lines, dropped=outbox.dropped,
        unconfirmed=outbox.unconfirmed,
    )  # fmt: skip


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


async def post_samples(
    take_sample: Callable[[], Awaitable[bytes]],
    sender: ReliableSender,
    requested: asyncio.Event,
    interval_seconds: float,
) -> None:
    """Post a sample at every interval, and on request. A sample can take seconds; nothing waits for it but the next."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_seconds
        try:
            sender.post(await take_sample())
        except NoSample as exc:
            _log.warning("no sample was taken: trying again at the next interval", error=str(exc))
        await asyncio.sleep(SHORTEST_INTERVAL_SECONDS)
        try:
            async with asyncio.timeout_at(due):
                await requested.wait()
        except TimeoutError:
            continue
        finally:
            requested.clear()
