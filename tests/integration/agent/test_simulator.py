"""A fleet of simulated guests as a program, read over its real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.harness.waiting import eventually

from guestd.simulator import machine_ids
from support.daemon import command, started

DEADLINE_SECONDS = 30
HEADER = re.compile(
    rb'\{"type":"metrics","boot_id":"([0-9a-f-]{36})","seq":([0-9]+),"oldest":([0-9]+),'
    rb'"after":"[0-9a-f]{16}","mark":"[0-9a-f]{16}","age_ms":[0-9]+,"timestamp":"([^"]+)"'
)


@contextmanager
def simulating(directory: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with started(command("guestd", "simulate", "--directory", os.fspath(directory), *words)) as process:
        yield process


def until_served(paths: list[Path]) -> None:
    eventually(lambda: all(path.exists() for path in paths), "every guest serves its socket", DEADLINE_SECONDS)


class Reader:
    """A host for one guest: reads some lines on each connection, acknowledges them, and goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = 0
        self.taken: list[tuple[int, str]] = []

    def read(self, lines: int) -> None:
        """Take so many new lines and close without reading the rest; fewer if the guest is gone."""
        wanted = len(self.taken) + lines
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(DEADLINE_SECONDS)
            channel.connect(os.fspath(self.path))
            with channel.makefile("rb") as stream:
                while len(self.taken) < wanted and (line := stream.readline()):
                    if line.strip():
                        self.take(line, channel)

    def take(self, line: bytes, channel: socket.socket) -> None:
        match = HEADER.match(line)
        assert match is not None, line[:200]
        boot_id, seq, oldest = match[1], int(match[2]), int(match[3])
        if seq == self.last + 1 or (seq > self.last and seq == oldest):
            self.last = seq
            self.taken.append((seq, match[4].decode()))
        channel.sendall(b'{"type":"ack","boot_id":"%s","seq":%d}\n' % (boot_id, self.last))


def manifest(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_bounded_run_ends_when_all_is_acknowledged_and_says_what_it_sent(directory: Path, tmp_path: Path) -> None:
    sockets = [directory / f"{machine}.socket" for machine in machine_ids(3, 5)]
    words = ("--guests", "3", "--seed", "5", "--processes", "20", "--interval", "0", "--count", "40")
    with simulating(directory, *words, "--manifest", os.fspath(tmp_path / "sent")) as process:
        until_served(sockets)
        readers = [Reader(path) for path in sockets]
        for lines in (1, 7, 13, 19):
            for reader in readers:
                reader.read(lines)
        assert process.wait(DEADLINE_SECONDS) == 0
    assert not any(path.exists() for path in sockets)
    for reader, told in zip(readers, manifest(tmp_path / "sent"), strict=True):
        assert told["machine"] == reader.path.stem
        assert (told["sent"], told["acknowledged"], told["given_up"]) == (40, 40, 0)
        assert [seq for seq, _ in reader.taken] == list(range(1, 41))
        stamps = [timestamp for _, timestamp in reader.taken]
        assert stamps == sorted(set(stamps))
        assert len(set(told["timestamps_ms"])) == 40


def test_an_endless_run_ends_cleanly_on_sigterm(directory: Path) -> None:
    sockets = [directory / f"{machine}.socket" for machine in machine_ids(4, 1)]
    with simulating(directory, "--guests", "4", "--processes", "5", "--interval", "0.05") as process:
        until_served(sockets)
        Reader(sockets[3]).read(5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0
    assert list(directory.iterdir()) == []


def test_a_bounded_run_that_is_stopped_early_says_so(directory: Path, tmp_path: Path) -> None:
    sockets = [directory / f"{machine}.socket" for machine in machine_ids(1, 1)]
    words = ("--guests", "1", "--processes", "5", "--interval", "0", "--count", "50")
    with simulating(directory, *words, "--manifest", os.fspath(tmp_path / "sent")) as process:
        until_served(sockets)
        Reader(sockets[0]).read(5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 1
    [told] = manifest(tmp_path / "sent")
    assert 5 <= told["sent"] < 50
    assert told["acknowledged"] <= 5


def test_a_directory_that_somebody_serves_already_is_refused(directory: Path) -> None:
    sockets = [directory / f"{machine}.socket" for machine in machine_ids(1, 1)]
    with simulating(directory, "--guests", "1"):
        until_served(sockets)
        with simulating(directory, "--guests", "1") as second:
            assert second.wait(DEADLINE_SECONDS) == 1
        assert sockets[0].exists()


def under_limits(directory: Path, soft: int, hard: int, guests: int) -> list[str]:
    words = ["--directory", os.fspath(directory), "--guests", str(guests), "--processes", "1"]
    return ["prlimit", f"--nofile={soft}:{hard}", *command("guestd", "simulate", *words)]


def test_the_limit_of_open_files_is_raised_as_far_as_the_fleet_needs(directory: Path) -> None:
    sockets = [directory / f"{machine}.socket" for machine in machine_ids(60, 1)]
    with started(under_limits(directory, 64, 1024, guests=60)) as process:
        until_served(sockets)
        Reader(sockets[0]).read(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_fleet_that_the_hard_limit_does_not_allow_is_refused_with_the_numbers(directory: Path) -> None:
    with started(under_limits(directory, 64, 128, guests=60)) as process:
        _, output = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 1
        assert b"60 guests need 184 open files, the hard limit is 128" in output
