"""The agent's channel over real unix sockets and pseudo-terminals, with a host that follows docs/wire.md."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import random
import socket
import time
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tools.harness.waiting import eventually_async

from guestd.agent.outbox import Outbox
from guestd.agent.transport import ReliableSender, listen, run_connection, serve_port, serve_socket

BOOT_ID = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"
DEADLINE_SECONDS = 20
# A loop that spins takes all of a core; what is allowed is 5 % of one.
MEASURED_SECONDS = 2.0
ALLOWED_CPU_SECONDS = 0.1


class Host:
    """The receiving side: takes lines in order, each once, and says so."""

    def __init__(self) -> None:
        self.last = 0
        self.taken: list[dict[str, Any]] = []
        self.fragments = 0

    def answer(self, line: bytes) -> bytes:
        """What to write back for one line; nothing for remains of a line that was cut."""
        if not line.strip():
            return b""
        try:
            message = json.loads(line)
        except ValueError:
            self.fragments += 1
            return b""
        seq = message["seq"]
        if seq == self.last + 1 or (seq > self.last and seq == message["oldest"]):
            self.last = seq
            self.taken.append(message)
        resend = {"resend": True} if seq > self.last else {}
        return json.dumps({"type": "ack", "boot_id": BOOT_ID, "seq": self.last, **resend}).encode() + b"\n"

    async def talk(self, path: Path, budget_bytes: int) -> None:
        """Connect, read so many bytes, answer the lines in them, and close, however many more there are."""
        reader, writer = await asyncio.open_unix_connection(os.fspath(path))
        partial = b""
        try:
            while budget_bytes > 0:
                chunk = await asyncio.wait_for(reader.read(min(budget_bytes, 65536)), DEADLINE_SECONDS)
                budget_bytes -= len(chunk)
                *lines, partial = (partial + chunk).split(b"\n")
                writer.write(b"".join([self.answer(line) for line in lines]))
                await writer.drain()
                if not chunk:
                    return
        finally:
            writer.close()


def sender(limit_bytes: int = 1 << 24) -> ReliableSender:
    return ReliableSender(Outbox(BOOT_ID, limit_bytes), on_request=lambda: None)


def body(number: int, size_bytes: int) -> bytes:
    return json.dumps({"n": number, "padding": "x" * size_bytes}, separators=(",", ":")).encode()


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()


@pytest.mark.parametrize("seed", range(4))
def test_every_line_arrives_exactly_once_though_the_host_cuts_at_random(tmp_path: Path, seed: int) -> None:
    async def cut_and_come_back(host: Host, chance: random.Random) -> None:
        while True:
            await host.talk(tmp_path / "a.socket", chance.randrange(1, 300_000))

    async def scenario() -> Host:
        chance, host, agent = random.Random(seed), Host(), sender()
        with listen(tmp_path / "a.socket") as listener:
            async with running(serve_socket(listener, agent)), running(cut_and_come_back(host, chance)):
                for number in range(1, 151):
                    agent.post(body(number, chance.choice((10, 2_000, 60_000))))
                    await asyncio.wait_for(agent.wait_until_at_most(chance.randrange(1, 20)), DEADLINE_SECONDS)
                await asyncio.wait_for(agent.wait_until_at_most(0), DEADLINE_SECONDS)
        return host

    host = asyncio.run(scenario())
    assert [message["n"] for message in host.taken] == list(range(1, 151))


def test_a_line_much_larger_than_the_channel_goes_on_where_each_write_stopped() -> None:
    async def scenario() -> Host:
        host, agent = Host(), sender()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            reader, writer = await asyncio.open_unix_connection(sock=theirs, limit=1 << 22)
            async with running(run_connection(ours.fileno(), agent)):
                for number in (1, 2):
                    agent.post(body(number, 900_000))
                while host.last < 2:
                    writer.write(host.answer(await asyncio.wait_for(reader.readline(), DEADLINE_SECONDS)))
                await asyncio.wait_for(agent.wait_until_at_most(0), DEADLINE_SECONDS)
            writer.close()
        return host

    host = asyncio.run(scenario())
    assert [message["n"] for message in host.taken] == [1, 2]
    assert host.fragments == 0


def test_a_connection_begins_with_a_lone_newline(tmp_path: Path) -> None:
    async def scenario() -> bytes:
        agent = sender()
        agent.post(body(1, 1))
        with listen(tmp_path / "a.socket") as listener:
            async with running(serve_socket(listener, agent)):
                reader, writer = await asyncio.open_unix_connection(os.fspath(tmp_path / "a.socket"))
                first = await asyncio.wait_for(reader.readline(), DEADLINE_SECONDS)
                writer.close()
                return first

    assert asyncio.run(scenario()) == b"\n"


def test_a_second_host_gets_nothing_until_the_first_has_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        agent = sender()
        path = os.fspath(tmp_path / "a.socket")
        with listen(tmp_path / "a.socket") as listener:
            async with running(serve_socket(listener, agent)):
                first_reader, first_writer = await asyncio.open_unix_connection(path)
                assert await first_reader.readline() == b"\n"
                second_reader, second_writer = await asyncio.open_unix_connection(path)
                agent.post(body(1, 1))
                assert json.loads(await first_reader.readline())["n"] == 1
                waiting = asyncio.create_task(second_reader.readline())
                agent.post(body(2, 1))
                assert json.loads(await first_reader.readline())["n"] == 2
                assert not waiting.done()
                first_writer.close()
                assert await asyncio.wait_for(waiting, DEADLINE_SECONDS) == b"\n"
                assert json.loads(await second_reader.readline())["seq"] == 1
                second_writer.close()

    asyncio.run(scenario())


def test_lines_that_a_host_wrote_before_it_closed_are_handled(tmp_path: Path) -> None:
    """It closes with lines unread: writing fails at once, and its acknowledgement is still to be read."""

    async def scenario() -> None:
        host, agent = Host(), sender()
        for number in (1, 2, 3):
            agent.post(body(number, 500_000))
        with listen(tmp_path / "a.socket") as listener:
            async with running(serve_socket(listener, agent)):
                reader, writer = await asyncio.open_unix_connection(os.fspath(tmp_path / "a.socket"), limit=1 << 20)
                while host.last < 1:
                    writer.write(host.answer(await asyncio.wait_for(reader.readline(), DEADLINE_SECONDS)))
                writer.close()
                await asyncio.wait_for(agent.wait_until_at_most(2), DEADLINE_SECONDS)

    asyncio.run(scenario())


def test_a_request_for_metrics_reaches_the_collector(tmp_path: Path) -> None:
    async def scenario() -> None:
        asked = asyncio.Event()
        agent = ReliableSender(Outbox(BOOT_ID, 1 << 20), on_request=asked.set)
        with listen(tmp_path / "a.socket") as listener:
            async with running(serve_socket(listener, agent)):
                _, writer = await asyncio.open_unix_connection(os.fspath(tmp_path / "a.socket"))
                writer.write(b'rubbish\n{"type":"SafeCommand","id":"1"}\n{"type":"Metrics"}\n')
                await asyncio.wait_for(asked.wait(), DEADLINE_SECONDS)
                writer.close()

    asyncio.run(scenario())


def test_a_socket_left_behind_by_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    listen(tmp_path / "a.socket").close()
    listen(tmp_path / "a.socket").close()


def test_a_socket_that_somebody_serves_is_left_alone(tmp_path: Path) -> None:
    with listen(tmp_path / "a.socket"), pytest.raises(OSError, match="another program serves it"):
        listen(tmp_path / "a.socket")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.socket").write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        listen(tmp_path / "a.socket")


def test_a_path_too_long_for_a_socket_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"107 bytes of a socket's path.*xxx"):
        listen(tmp_path / ("x" * 100))


class Terminal:
    """A pseudo-terminal in the place of a virtio-serial port: `device` is the guest's end, the rest the host's."""

    def __init__(self, device: Path) -> None:
        self.host, guest = pty.openpty()
        tty.setraw(guest)
        os.set_blocking(self.host, False)
        self._guest = guest
        device.unlink(missing_ok=True)
        device.symlink_to(os.ttyname(guest))
        self._partial = b""

    def lines(self) -> list[bytes]:
        try:
            self._partial += os.read(self.host, 65536)
        except BlockingIOError:
            return []
        *lines, self._partial = self._partial.split(b"\n")
        return [line for line in lines if line]

    def hang_up(self) -> None:
        os.close(self._guest)
        os.close(self.host)


def test_a_port_that_hangs_up_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    device, host = tmp_path / "port", Host()

    def exchange(terminal: Terminal, lines: int) -> bool:
        for line in terminal.lines():
            os.write(terminal.host, host.answer(line))
        return len(host.taken) == lines

    async def scenario() -> None:
        agent = sender()
        async with running(serve_port(device, agent)):
            agent.post(body(1, 3_000))
            first = Terminal(device)
            await eventually_async(lambda: exchange(first, 1), "the first line is acknowledged", DEADLINE_SECONDS)
            agent.post(body(2, 50_000))
            await eventually_async(
                lambda: first.lines() != [] or len(first._partial) > 1000,
                "a part of the second line has arrived",
                DEADLINE_SECONDS,
            )
            second = Terminal(device)
            first.hang_up()
            agent.post(body(3, 10))
            await eventually_async(
                lambda: exchange(second, 3), "all lines have reached the second terminal", DEADLINE_SECONDS
            )
            second.hang_up()

    asyncio.run(scenario())
    assert [message["n"] for message in host.taken] == [1, 2, 3]


async def cpu_seconds_while_waiting() -> float:
    before = time.process_time()
    await asyncio.sleep(MEASURED_SECONDS)
    return time.process_time() - before


def test_no_cpu_is_burnt_without_a_client(tmp_path: Path) -> None:
    async def scenario() -> float:
        agent = sender()
        agent.post(body(1, 1))
        with listen(tmp_path / "a.socket") as listener:
            async with running(serve_socket(listener, agent)):
                return await cpu_seconds_while_waiting()

    assert asyncio.run(scenario()) < ALLOWED_CPU_SECONDS


def test_no_cpu_is_burnt_on_a_client_that_does_not_read(tmp_path: Path) -> None:
    async def scenario() -> float:
        agent = sender()
        for number in range(8):
            agent.post(body(number, 500_000))
        with listen(tmp_path / "a.socket") as listener, socket.socket(socket.AF_UNIX) as client:
            async with running(serve_socket(listener, agent)):
                client.connect(os.fspath(tmp_path / "a.socket"))
                return await cpu_seconds_while_waiting()

    assert asyncio.run(scenario()) < ALLOWED_CPU_SECONDS


def test_no_cpu_is_burnt_on_a_port_that_hung_up(tmp_path: Path) -> None:
    async def scenario() -> float:
        agent = sender()
        agent.post(body(1, 500_000))
        terminal = Terminal(tmp_path / "port")
        async with running(serve_port(tmp_path / "port", agent)):
            await eventually_async(
                lambda: len(terminal.lines()) == 0 and len(terminal._partial) > 1000,
                "a part of the line has arrived",
                DEADLINE_SECONDS,
            )
            terminal.hang_up()
            return await cpu_seconds_while_waiting()

    assert asyncio.run(scenario()) < ALLOWED_CPU_SECONDS


def test_no_cpu_is_burnt_on_a_port_that_is_always_at_its_end(tmp_path: Path) -> None:
    """What a virtio-serial port without a host looks like to a reader."""

    async def scenario() -> float:
        async with running(serve_port(Path("/dev/null"), sender())):
            return await cpu_seconds_while_waiting()

    assert asyncio.run(scenario()) < ALLOWED_CPU_SECONDS
