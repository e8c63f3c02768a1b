"""`guestd agent` as a program: its socket, its samples, its state, its end."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from tools.harness.waiting import eventually, eventually_async

from guestd.agent.hostlines import HostLines, pass_through
from guestd.agent.outbox import Outbox
from guestd.agent.run import post_samples
from guestd.agent.transport import ReliableSender
from guestd.cli.agent import BUFFER_BYTES
from guestd.cli.main import make_parser
from support.daemon import command, started

DEADLINE_SECONDS = 30


def reporting(*words: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return started(command("guestd", "agent", *words))


@contextmanager
def connected(path: Path) -> Iterator[tuple[socket.socket, IO[bytes]]]:
    eventually(path.exists, "the agent serves its socket", DEADLINE_SECONDS)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(DEADLINE_SECONDS)
        channel.connect(os.fspath(path))
        with channel.makefile("rb") as stream:
            assert stream.readline() == b"\n"
            yield channel, stream


def acknowledge(channel: socket.socket, message: dict[str, Any]) -> None:
    ack = {"type": "ack", "boot_id": message["boot_id"], "seq": message["seq"]}
    channel.sendall(json.dumps(ack).encode() + b"\n")


def test_samples_come_at_the_interval_and_an_early_one_when_the_host_asks(directory: Path) -> None:
    path = directory / "a.socket"
    with reporting("--listen", os.fspath(path), "--interval", "3600") as process, connected(path) as (channel, stream):
        first = json.loads(stream.readline())
        assert (first["type"], first["seq"], first["oldest"]) == ("metrics", 1, 1)
        acknowledge(channel, first)
        channel.sendall(b'{"type":"Metrics"}\n')
        second = json.loads(stream.readline())
        assert (second["boot_id"], second["seq"], second["oldest"]) == (first["boot_id"], 2, 2)
        assert process.pid in [known["id"] for known in second["data"]["system"]["processes"]]


@pytest.mark.asyncio
async def test_an_acknowledgement_does_not_wait_for_the_sample_that_is_being_taken() -> None:
    is_taken, may_end = asyncio.Event(), asyncio.Event()

    async def take_slow_sample() -> bytes:
        is_taken.set()
        await may_end.wait()
        return b"{}"

    sender = ReliableSender(Outbox("boot", BUFFER_BYTES), on_request=lambda: None)
    sender.post(b"{}")
    task = asyncio.create_task(post_samples(take_slow_sample, sender, asyncio.Event(), 3600))
    try:
        await is_taken.wait()
        [acknowledged] = HostLines(pass_through).feed(b'{"type":"ack","boot_id":"boot","seq":1}\n')
        sender.handle_line(acknowledged)
        assert sender.outbox.held_lines == 0
        may_end.set()
        await eventually_async(lambda: sender.outbox.held_lines == 1, "the sample is posted")
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_a_line_that_was_not_acknowledged_is_written_again_to_the_next_host(directory: Path) -> None:
    path = directory / "a.socket"
    with reporting("--listen", os.fspath(path), "--interval", "3600"):
        with connected(path) as (_, stream):
            first = json.loads(stream.readline())
        with connected(path) as (_, stream):
            again = json.loads(stream.readline())
    assert again.pop("age_ms") >= first.pop("age_ms") >= 0
    assert again == first


def test_the_end_is_clean_and_minutes_survive_it(directory: Path) -> None:
    path, state = directory / "a.socket", directory / "state.json"
    words = ("--listen", os.fspath(path), "--interval", "1", "--state", os.fspath(state))
    executable = psutil.Process().exe()
    seconds = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with reporting(*words) as process, connected(path) as (channel, stream):
            for _ in range(3):
                acknowledge(channel, json.loads(stream.readline()))
            process.send_signal(number)
            assert process.wait(DEADLINE_SECONDS) == 0
        assert sorted(known.name for known in directory.iterdir()) == ["state.json"]
        seconds.append(json.loads(state.read_bytes())["records"][executable]["seconds"])
    assert 0 < seconds[0] < seconds[1]


def test_a_socket_in_use_is_refused_with_its_name(directory: Path) -> None:
    path = directory / "a.socket"
    with reporting("--listen", os.fspath(path)), connected(path), reporting("--listen", os.fspath(path)) as second:
        _, output = second.communicate(timeout=DEADLINE_SECONDS)
        assert second.returncode == 1
        assert b"another program serves it" in output
        assert os.fsencode(path) in output


def parsed(*words: str) -> argparse.Namespace:
    return make_parser().parse_args(["agent", *words])


def test_arguments_have_the_documented_defaults() -> None:
    arguments = parsed()
    assert os.fspath(arguments.device) == "/dev/virtio-ports/org.infinibay.agent"
    assert (arguments.listen, arguments.interval, arguments.processes) == (None, 30.0, None)
    assert (arguments.state, arguments.buffer_bytes) == (None, 8 * 1024 * 1024)
    assert parsed("--processes", "20").processes == 20
    assert parsed("--processes", "all").processes is None


@pytest.mark.parametrize(
    "words",
    [
        ("--interval", "0.5"),
        ("--processes", "-1"),
        ("--buffer-bytes", "1000"),
        ("--device", "/dev/null", "--listen", "x"),
    ],
)
def test_arguments_out_of_range_are_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert words[0] in capsys.readouterr().err
