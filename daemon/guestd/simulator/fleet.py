"""A fleet of simulated guests in one event loop: each behind a unix socket of its own, as QEMU would serve it, or all
over one connection to a broker.
"""

from __future__ import annotations

import asyncio
import resource
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from guestd.agent.broker_link import BrokerLink
from guestd.agent.mqtt import Address
from guestd.agent.outbox import Outbox
from guestd.agent.publish import publish_lines
from guestd.agent.transport import ReliableSender, listen, serve_socket
from guestd.simulator.guest import Guest

# Enough for a host that is down for minutes; the memory of a fleet of a thousand that nobody reads stays bounded.
BUFFER_BYTES = 4 * 1024 * 1024
# With an interval of 0 a guest has this many lines in flight: enough that it never waits for a single answer.
WINDOW_LINES = 8
# A listening socket and a client for each guest, and what the interpreter and the logs need.
DESCRIPTORS_PER_GUEST = 2
SPARE_DESCRIPTORS = 64


@dataclass(frozen=True, slots=True)
class Fleet:
    """What to simulate. `target`: the directory of the sockets, or a broker.

    `interval_seconds` 0: as fast as acknowledged; `count` None: until a signal.
    """

    target: Path | Address
    guests: int
    interval_seconds: float
    processes: int
    seed: int = 1
    first: int = 0
    count: int | None = None


@dataclass(slots=True)
class SimulatedGuest:
    """A guest, its outbox and its transport; and the times of its samples, where their count is limited."""

    guest: Guest
    sender: ReliableSender
    deliver: Callable[[], Coroutine[Any, Any, None]]
    timestamps_ms: deque[int] = field(default_factory=deque)

    @property
    def name(self) -> str:
        """For its tasks."""
        return str(self.guest.machine_id)

    def summarise(self) -> dict[str, Any]:
        """One line of the manifest: the messages that were sent, and what became of them."""
        outbox = self.sender.outbox
        return {
            "machine": str(self.guest.machine_id),
            "boot_id": outbox.boot_id,
            "sent": outbox.last,
            "acknowledged": outbox.acknowledged,
            "given_up": outbox.dropped,
            "unconfirmed": outbox.unconfirmed,
            "timestamps_ms": list(self.timestamps_ms),
        }


@dataclass(frozen=True, slots=True)
class OpenFleet:
    """The guests, and their connection to a broker, if they share one."""

    guests: list[SimulatedGuest]
    link: BrokerLink | None


def raise_descriptor_limit(guests: int) -> None:
    """Raise the soft limit of open files to what the guests need; OSError when the hard limit is too low."""
    needed = guests * DESCRIPTORS_PER_GUEST + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(f"{guests} guests need {needed} open files, the hard limit is {hard}")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Makes the coroutine that delivers the lines of a machine.
_Connect = Callable[[uuid.UUID, ReliableSender], Callable[[], Coroutine[Any, Any, None]]]


def open_fleet(fleet: Fleet, open_: ExitStack) -> OpenFleet:
    """All guests, listening until `open_` is closed, or ready to connect to the broker.

    Raises OSError when one cannot listen.
    """
    start_s = int(time.time())
    link: BrokerLink | None = None
    if isinstance(fleet.target, Path):
        connect = _connect_by_socket(fleet.target, open_)
    else:
        # One: a broker may name sessions by the user, and all guests are one user's.
        link = BrokerLink(fleet.target, f"guestd-simulate-{uuid.uuid4()}")
        connect = _connect_by_broker(fleet.target, link)
    guests = []
    for number in range(fleet.first, fleet.first + fleet.guests):
        guest = Guest(number, seed=fleet.seed, processes=fleet.processes, start_s=start_s)
        sender = ReliableSender(Outbox(str(uuid.uuid4()), BUFFER_BYTES), on_request=_ignore_request)
        deliver = connect(guest.machine_id, sender)
        guests.append(SimulatedGuest(guest, sender, deliver, deque(maxlen=fleet.count or 0)))
    return OpenFleet(guests, link)


def _connect_by_socket(directory: Path, open_: ExitStack) -> _Connect:
    directory.mkdir(parents=True, exist_ok=True)

    def connect(machine_id: uuid.UUID, sender: ReliableSender) -> Callable[[], Coroutine[Any, Any, None]]:
        path = directory / f"{machine_id}.socket"
        listener = open_.enter_context(listen(path))
        open_.callback(path.unlink, missing_ok=True)
        return partial(serve_socket, listener, sender)

    return connect


def _connect_by_broker(address: Address, link: BrokerLink) -> _Connect:
    def connect(machine_id: uuid.UUID, sender: ReliableSender) -> Callable[[], Coroutine[Any, Any, None]]:
        return partial(publish_lines, link, address.topic(machine_id, "metrics"), sender)

    return connect


def _ignore_request() -> None:
    """A simulated guest reports at its interval alone, whatever the host requests."""


async def run_fleet(opened: OpenFleet, fleet: Fleet) -> None:
    """Serve every guest until all its messages are sent and acknowledged; without a count this does not end."""
    async with asyncio.TaskGroup() as tasks:
        guests = opened.guests
        delivering = [tasks.create_task(guest.deliver(), name=f"deliver {guest.name}") for guest in guests]
        if opened.link is not None:
            delivering.append(tasks.create_task(opened.link.run(), name="broker"))
        async with asyncio.TaskGroup() as reports:
            for place, guest in enumerate(guests):
                # Spread over the interval, so that a host sees a stream and not a wave.
                delay_seconds = fleet.interval_seconds * place / len(guests)
                reports.create_task(_report(guest, fleet, delay_seconds), name=f"report {guest.name}")
        for task in delivering:
            task.cancel()


async def _report(guest: SimulatedGuest, fleet: Fleet, delay_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time() + delay_seconds
    timestamp_ms = 0
    for _ in _rounds(fleet.count):
        if fleet.interval_seconds:
            await asyncio.sleep(due - loop.time())
            due += fleet.interval_seconds
        else:
            await guest.sender.wait_until_at_most(WINDOW_LINES - 1)
        # Strictly increasing: a message can be told from every other of its machine.
        timestamp_ms = max(time.time_ns() // 1_000_000, timestamp_ms + 1)
        guest.timestamps_ms.append(timestamp_ms)
        guest.sender.post(guest.guest.body(timestamp_ms))
    await guest.sender.wait_until_at_most(0)


def _rounds(count: int | None) -> Iterator[int]:
    number = 0
    while count is None or number < count:
        yield number
        number += 1
