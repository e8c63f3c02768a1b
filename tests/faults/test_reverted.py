"""A machine is reverted to snapshots while its agent sends: our agent over a real channel, into the tables."""

import asyncio
import copy
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from tools.harness.waiting import eventually, wait_seconds

from guestd.agent.outbox import Outbox
from guestd.agent.transport import ReliableSender, listen, run_connection
from support.daemon import Daemon, add_machine, rows
from support.faults import Reliability, count_samples, sample_line


class Machine:
    """A machine whose memory is its agent's outbox; it can be saved and reverted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._conversation: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self.sender = ReliableSender(Outbox(str(uuid4()), 1 << 24), on_request=lambda: None)
        self.issued = 0
        self.rewound = 0
        # Issued, and held by nothing but the memory that a revert threw away; or not even that.
        self.undone: set[int] = set()

    @asynccontextmanager
    async def speaking(self) -> AsyncIterator[None]:
        """Serve the channel, as QEMU does; guestd must have stopped at the end."""
        with listen(self._path) as listener:
            serving = asyncio.create_task(self._serve(listener))
            try:
                yield
            finally:
                serving.cancel()
                await asyncio.wait([serving])

    async def _serve(self, listener: socket.socket) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            with client:
                client.setblocking(False)
                self._conversation = asyncio.create_task(run_connection(client.fileno(), self.sender))
                self._connected.set()
                await asyncio.wait([self._conversation])

    async def hang_up(self) -> None:
        """End the conversation and wait for the next one: guestd comes back."""
        await asyncio.wait_for(self._connected.wait(), 60)
        self._connected.clear()
        assert self._conversation is not None
        self._conversation.cancel()
        await asyncio.wait_for(self._connected.wait(), 60)

    async def work(self) -> None:
        """Issue some lines, some of which arrive."""
        for _ in range(random.randrange(1, 6)):
            self.issued += 1
            self.sender.post(sample_line(self.issued).strip().replace(b'{"type":"metrics",', b"{"))
        await asyncio.to_thread(wait_seconds, random.uniform(0, 0.1))

    def put_back(self, saved: Outbox) -> None:
        self.undone |= self._held(self.sender.outbox) - self._held(saved)
        self.rewound += self.sender.outbox.rewound - saved.rewound
        self.sender.outbox = copy.deepcopy(saved)
        # As a process that goes on from the snapshot does.
        self.sender.outbox.restart()

    @staticmethod
    def _held(outbox: Outbox) -> set[int]:
        return {int(line.partition(b'"uptime_seconds":')[2].partition(b",")[0]) for line in outbox._held}


@pytest.mark.parametrize("channel", ["stays open", "is reopened"])
@pytest.mark.asyncio
async def test_what_a_machine_says_after_a_revert_is_stored_once(
    daemon: Daemon, reliability: Reliability, channel: str
) -> None:
    # guestd waits longer and longer for a channel that is lost again and again.
    reverts = reliability.rounds(quick=10, full=100) if channel == "stays open" else reliability.rounds(quick=3, full=7)
    machine_id = add_machine(daemon.dsn)
    machine = Machine(daemon.channels / f"{machine_id}.socket")
    daemon.start()
    await asyncio.to_thread(daemon.url)
    async with machine.speaking():
        for _ in range(reverts):
            await machine.work()
            saved = copy.deepcopy(machine.sender.outbox)
            await machine.work()
            await machine.work()
            machine.put_back(saved)
            if channel == "is reopened":
                await machine.hang_up()
        await machine.work()
        await asyncio.wait_for(machine.sender.wait_until_at_most(0), 60)
        await asyncio.to_thread(eventually, lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty")
        assert await asyncio.to_thread(daemon.stop) == 0
    stored = {number for (number,) in rows(daemon.dsn, 'SELECT "uptime" FROM "SystemMetrics"')}
    gap = len(machine.undone - stored)
    tally = count_samples(daemon.dsn, {machine_id: range(1, machine.issued + 1)}, sender_gap=gap)
    assert machine.rewound + machine.sender.outbox.rewound > 0
    note = "the sender's gap: lines that were only in the memory that was reverted"
    reliability.record(f"a machine reverted to a snapshot, its channel {channel}", reverts, tally, note)
