"""Machines that are put back to snapshots: our agent's outbox and guestd's gate, over a channel that may cut."""

import asyncio
import copy
import tempfile
from collections import Counter, deque
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from guestd.agent.hostlines import HostLines
from guestd.agent.outbox import NO_PROGRESS_SECONDS, Outbox
from guestd.wire.framing import Framer
from support.gate import BOOT, MACHINE, GateRig, gate_on, read_lines


class World:
    """One machine with its agent, and the host, with what is on its way between them."""

    def __init__(self, rig: GateRig) -> None:
        self.rig = rig
        self.now_seconds = 0.0
        self.issued = 0
        self.box = Outbox(BOOT, 1 << 20)
        self.saved = copy.deepcopy(self.box)
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.since_revert: list[int] = []
        self.held_at_reverts: set[int] = set()

    def held(self) -> set[int]:
        return {msgspec.json.decode(b"{" + body)["n"] for body in self.box._held}

    async def stored(self) -> Counter[int]:
        return Counter(msgspec.json.decode(payload)["n"] for payload in await self.rig.payloads())

    async def step(self, name: str, amount: int) -> None:
        await getattr(self, name)(amount)

    async def add(self, amount: int) -> None:
        for _ in range(amount):
            self.issued += 1
            self.since_revert.append(self.issued)
            self.box.add(b'{"n":%d}' % self.issued, self.now_seconds)

    async def write(self, amount: int) -> None:
        for _ in range(amount):
            if (line := self.box.next_line(self.now_seconds)) is not None:
                self.up.append(line)

    async def read(self, amount: int) -> None:
        chunk = b"".join(self.up.popleft() for _ in range(min(amount, len(self.up))))
        self.rig.now_ms += 2000
        self.down.extend(await self.rig.gate.accept(MACHINE, read_lines(*Framer(10_000).feed(chunk))))

    async def hear(self, amount: int) -> None:
        for _ in range(min(amount, len(self.down))):
            before = self.held()
            for heard in HostLines().feed(self.down.popleft() + b"\n"):
                answer = self.box.resend_after if heard.resend else self.box.acknowledge
                answer(heard.boot_id, heard.seq, self.now_seconds, heard.mark)
            # What the agent forgets is safe, whatever became of its numbers.
            assert before - self.held() <= (await self.stored()).keys()

    async def cut(self, amount: int) -> None:
        await self.read(amount - 1)
        self.up.clear()
        self.down.clear()
        self.box.restart()

    async def save(self, amount: int) -> None:
        self.saved = copy.deepcopy(self.box)

    async def revert(self, amount: int) -> None:
        """Put the machine back; its channel is a new one."""
        self.box = copy.deepcopy(self.saved)
        self.since_revert = []
        self.held_at_reverts |= self.held()
        await self.cut(amount)

    async def revert_under_the_open_channel(self, amount: int) -> None:
        """As QEMU does it when it keeps running: what was on its way arrives."""
        up, down = self.up.copy(), self.down.copy()
        await self.revert(1)
        self.up, self.down = up, down

    async def settle(self) -> None:
        for _ in range(10):
            await self.write(1000)
            await self.read(1000)
            await self.hear(1000)
            self.now_seconds += NO_PROGRESS_SECONDS


MOVES = ("add", "add", "write", "write", "read", "hear", "save", "revert", "cut")
STEPS = st.integers(1, 4)


def steps(moves: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(moves), STEPS), max_size=60)


async def lived(directory: Path, moves: list[tuple[str, int]]) -> tuple[World, Counter[int]]:
    async with gate_on(directory) as rig:
        world = World(rig)
        for name, amount in moves:
            await world.step(name, amount)
        await world.settle()
        assert world.held() == set()
        return world, await world.stored()


@given(steps(MOVES))
@settings(max_examples=60, deadline=None)
def test_every_line_that_is_issued_after_a_revert_is_stored_exactly_once(moves: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world, stored = asyncio.run(lived(Path(directory), moves))
    assert {number: stored[number] for number in world.since_revert} == dict.fromkeys(world.since_revert, 1)
    # What an agent held in the snapshot comes again under its new run; the store knows it by its mark.
    assert {number for number, times in stored.items() if times > 1} <= world.held_at_reverts


@given(steps((*MOVES, "revert_under_the_open_channel", "revert_under_the_open_channel")))
@settings(max_examples=60, deadline=None)
def test_no_line_is_lost_though_answers_of_before_the_revert_arrive_after_it(moves: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world, stored = asyncio.run(lived(Path(directory), moves))
    assert set(world.since_revert) <= stored.keys()


def test_a_machine_put_back_behind_what_the_host_has_loses_nothing() -> None:
    moves = [("add", 2), ("write", 2), ("read", 2), ("hear", 1), ("save", 1), ("add", 2), ("write", 2), ("read", 2),
             ("hear", 1), ("revert", 1), ("add", 4)]  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        world, stored = asyncio.run(lived(Path(directory), moves))
    assert world.box.rewound == 1
    assert stored == Counter(range(1, 9))
