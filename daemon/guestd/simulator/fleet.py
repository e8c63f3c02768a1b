"""A fleet of simulated guests in one event loop: each behind a unix socket of its own, as QEMU would serve it, or all
over a few connections to a broker.
"""

from __future__ import annotations

import asyncio
import itertools
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

from guestd.agent.mqtt import Address, Connection, speak
from guestd.agent.outbox import Outbox
from guestd.agent.transport import Sender, listen, serve
from guestd.simulator.guest import Guest

# Enough for a host that is away for minutes; a fleet of a thousand that is never read stays bounded.
BUFFER_BYTES = 4 * 1024 * 1024
# With an interval of 0 a guest has so many lines on the way: enough that it never waits for one answer.
WINDOW_LINES = 8
# A listening socket and a client for each guest, and what the interpreter and the logs need.
DESCRIPTORS_PER_GUEST = 2
SPARE_DESCRIPTORS = 64
# To a broker.
BROKER_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated. `way`: the directory of the sockets, or a broker.

    `interval_seconds` 0: as fast as acknowledged; `count` None: until told to stop.
    """

    way: Path | Address
    guests: int
    interval_seconds: float
    processes: int
    seed: int = 1
    first: int = 0
    count: int | None = None


@dataclass(slots=True)
class RegisteredMachine:
    """A guest, what it still holds for the host, and how it speaks; when its messages were taken, if few."""

    guest: Guest
    sender: Sender
    speak: Callable[[], Coroutine[Any, Any, None]]
    timestamps_ms: deque[int] = field(default_factory=deque)

    @property
    def name(self) -> str:
        """For its tasks."""
        return str(self.guest.machine_id)

    def tally(self) -> dict[str, Any]:
        """What was sent and what became of it."""
        outbox = self.sender.outbox
        return {
            "machine": str(self.guest.machine_id),
            "boot_id": outbox.boot_id,
            "sent": outbox.last,
            "acknowledged": outbox.acknowledged,
            "given_up": outbox.given_up,
            "timestamps_ms": list(self.timestamps_ms),
        }


def enlarge_descriptor_limit(guests: int) -> None:
    """Raise the soft limit of open files when so many guests need it; OSError when the hard one is too low."""
    needed = guests * DESCRIPTORS_PER_GUEST + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(f"{guests} guests need {needed} open files, the hard limit is {hard}")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_fleet(plan: Plan, open_: ExitStack) -> list[RegisteredMachine]:
    """All guests, listening or on their way to the broker; closing `open_` ends that. OSError when one cannot listen.

    Of a broker the loop must run, and `open_` be closed in it.
    """
    start_s = int(time.time())
    ways = _sockets(plan.way, open_) if isinstance(plan.way, Path) else _topics(plan.way, open_)
    members = []
    for number in range(plan.first, plan.first + plan.guests):
        guest = Guest(number, seed=plan.seed, processes=plan.processes, start_s=start_s)
        sender = Sender(Outbox(str(uuid.uuid4()), BUFFER_BYTES), on_request=_not_asked)
        members.append(RegisteredMachine(guest, sender, ways(guest.machine_id, sender), deque(maxlen=plan.count or 0)))
    return members


# How a guest will speak that has this id and this sender.
_Ways = Callable[[uuid.UUID, Sender], Callable[[], Coroutine[Any, Any, None]]]


def _sockets(directory: Path, open_: ExitStack) -> _Ways:
    directory.mkdir(parents=True, exist_ok=True)

    def way(machine_id: uuid.UUID, sender: Sender) -> Callable[[], Coroutine[Any, Any, None]]:
        path = directory / f"{machine_id}.socket"
        listener = open_.enter_context(listen(path))
        open_.callback(path.unlink, missing_ok=True)
        return partial(serve, listener, sender)

    return way


def _topics(address: Address, open_: ExitStack) -> _Ways:
    run = uuid.uuid4()
    connections = [Connection(address, f"guestd-simulate-{run}-{number}") for number in range(BROKER_CONNECTIONS)]
    for connection in connections:
        open_.callback(connection.close)
    takes_turns = itertools.cycle(connections)

    def way(machine_id: uuid.UUID, sender: Sender) -> Callable[[], Coroutine[Any, Any, None]]:
        return partial(speak, partial(next(takes_turns).publish, address.topic(machine_id, "metrics")), sender)

    return way


def _not_asked() -> None:
    """A simulated guest reports when its plan says so, whatever the host asks."""


async def live(members: list[RegisteredMachine], plan: Plan) -> None:
    """Serve every guest until each has sent its messages and has them acknowledged; for ever without a
    count."""
    async with asyncio.TaskGroup() as tasks:
        serving = [tasks.create_task(member.speak(), name=f"speak {member.name}") for member in members]
        async with asyncio.TaskGroup() as lives:
            for place, member in enumerate(members):
                # Spread over the interval, so that a host sees a stream and not a wave.
                delay_seconds = plan.interval_seconds * place / len(members)
                lives.create_task(_live(member, plan, delay_seconds), name=f"live {member.name}")
        for task in serving:
            task.cancel()


async def _live(member: RegisteredMachine, plan: Plan, delay_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time() + delay_seconds
    timestamp_ms = 0
    for _ in _rounds(plan.count):
        if plan.interval_seconds:
            await asyncio.sleep(due - loop.time())
            due += plan.interval_seconds
        else:
            await member.sender.at_most(WINDOW_LINES - 1)
        # Strictly increasing: a message can be told from every other of its machine.
        timestamp_ms = max(time.time_ns() // 1_000_000, timestamp_ms + 1)
        member.timestamps_ms.append(timestamp_ms)
        member.sender.post(member.guest.body(timestamp_ms))
    await member.sender.at_most(0)


def _rounds(count: int | None) -> Iterator[int]:
    number = 0
    while count is None or number < count:
        yield number
        number += 1
