"""`guestd agent` on a machine where something is wrong: that costs the part of the sample, and neither another one nor
the agent.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from tools.harness.waiting import eventually

from support.daemon import command
from support.odd_machine import started_on_odd_machine

DEADLINE_SECONDS = 30
# As lxcfs writes it: three numbers more than Linux 2.6, and one less than 4.18.
LXCFS_DISKSTATS = "   8       0 sda 10 0 400 0 46 0 977 34 0 2 0 0 0 0\n   8       1 sda1 1\n"
# The year 10000.
AFTER_ALL_YEARS = 253402300800
NOW_S = 1_790_000_000.0


class Host:
    """The host's side of the agent's socket: takes lines and acknowledges them."""

    def __init__(self, channel: socket.socket, stream: IO[bytes]) -> None:
        self._channel = channel
        self._stream = stream

    def next_sample(self) -> dict[str, Any]:
        """The next message."""
        while not (line := self._stream.readline()).strip():
            assert line, "the agent has closed its socket"
        message: dict[str, Any] = json.loads(line)
        ack = {"type": "ack", "boot_id": message["boot_id"], "seq": message["seq"]}
        self._channel.sendall(json.dumps(ack).encode() + b"\n")
        return message

    def samples_until(self, part: str, fails: bool) -> dict[str, Any]:
        """The first message in which this part fails, or not."""
        while (part in failed(message := self.next_sample())) is not fails:
            pass
        return message


def failed(message: dict[str, Any]) -> dict[str, str]:
    """The parts that failed, with their reasons."""
    return {each["part"]: each["reason"] for each in message.get("failed_parts", [])}


@contextmanager
def agent_on(
    directory: Path, *words: str, binds: Mapping[str, Path] | None = None, hang: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Host]]:
    """An agent that samples each second on such a machine, and a host that is connected to it."""
    path = directory / "a.socket"
    arguments = command("guestd", "agent", "--listen", str(path), "--interval", "1", *words)
    with started_on_odd_machine(arguments, binds, hang) as process:
        eventually(lambda: path.exists() or process.poll() is not None, "the agent serves its socket", DEADLINE_SECONDS)
        assert process.poll() is None, process.communicate()
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(DEADLINE_SECONDS)
            channel.connect(os.fspath(path))
            with channel.makefile("rb") as stream:
                yield process, Host(channel, stream)


def end(process: subprocess.Popen[bytes]) -> str:
    """SIGTERM; the agent ends cleanly. Returns its log."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_SECONDS) == 0
    assert process.stdin is not None
    assert process.stderr is not None
    # What hangs holds the process that took samples, and that one holds the log.
    process.stdin.close()
    return process.stderr.read().decode()


def sampler_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The process that takes samples for this agent."""
    [found] = [each for each in psutil.Process(process.pid).children() if "guestd.agent.sampler" in each.cmdline()]
    return found


def changed_proc(directory: Path, name: str, text: str) -> dict[str, Path]:
    """A file of /proc with this text instead."""
    (directory / name).write_text(text)
    return {f"/proc/{name}": directory / name}


def test_a_program_whose_file_is_of_the_year_10000_is_reported_without_that_time(directory: Path) -> None:
    program = Path(tempfile.mkdtemp(dir="/dev/shm")) / "odd"
    shutil.copy("/bin/sleep", program)
    os.utime(program, (AFTER_ALL_YEARS, AFTER_ALL_YEARS))
    try:
        with subprocess.Popen([program, "60"]) as running, agent_on(directory) as (process, host):
            [known] = [app for app in host.next_sample()["data"]["applications"] if app["exe_path"] == str(program)]
            assert (known["file_size"], "last_modified" in known) == (program.stat().st_size, False)
            end(process)
            running.kill()
    finally:
        shutil.rmtree(program.parent)


def test_a_line_of_diskstats_that_psutil_does_not_know_affects_no_disk_and_no_other_part(directory: Path) -> None:
    with agent_on(directory, binds=changed_proc(directory, "diskstats", LXCFS_DISKSTATS)) as (process, host):
        message = host.next_sample()
        assert failed(message) == {}
        assert message["data"]["system"]["processes"]
        end(process)


def test_without_the_time_of_boot_the_uptime_is_the_kernels_and_starts_are_unknown(directory: Path) -> None:
    lines = Path("/proc/stat").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("btime"))
    with agent_on(directory, binds=changed_proc(directory, "stat", text)) as (process, host):
        message = host.next_sample()
        system = message["data"]["system"]
        assert system["system"]["uptime_seconds"] == pytest.approx(
            float(Path("/proc/uptime").read_text().split()[0]), abs=30
        )
        assert system["cpu"]["cores_usage"]
        [ours] = [known for known in system["processes"] if known["id"] == process.pid]
        assert (ours["start_time"], ours["memory_usage_kb"] > 0) == (None, True)
        assert "btime" in failed(message)["processes"]
        end(process)


def test_only_what_lies_on_a_mount_that_does_not_answer_is_left_out_until_it_answers(directory: Path) -> None:
    hung, state = directory / "hung", directory / "state.json"
    hung.mkdir()
    record = {"seconds": 60.0, "starts": 1, "last_access": NOW_S, "is_file": True}
    state.write_text(json.dumps({"records": {f"{hung}/{name}": record for name in ("one", "two", "three")}}))
    # As a file system of a disk: psutil leaves out those without.
    known = Path("/proc/filesystems").read_text() + "\tfuse.hung\n"
    binds = changed_proc(directory, "filesystems", known)
    with agent_on(directory, "--state", str(state), binds=binds, hang=hung) as (process, host):
        message = host.next_sample()
        for part, mount in (("program_files", f"{hung}/one"), ("file_systems", str(hung))):
            assert f"{mount}: NoAnswer" in failed(message)[part]
        system = message["data"]["system"]
        assert "/" in [disk["mount_point"] for disk in system["disk"]["usage_stats"]]
        applications = {each["exe_path"]: each for each in message["data"]["applications"]}
        assert applications[f"{hung}/three"]["usage_minutes"] == 1
        assert any(each["is_active"] and each.get("file_size") for each in applications.values())
        # A call that hangs is not made again.
        assert "an earlier call has not returned" in failed(host.next_sample())["program_files"]
        assert process.stdin is not None
        process.stdin.close()  # the server of the mount ends
        host.samples_until("program_files", fails=False)
        log = end(process)
    assert '"part": "program_files"' in log
    assert "part of the sample is read again" in log


def test_a_link_into_a_hung_mount_at_the_place_of_a_removed_program_affects_no_program(directory: Path) -> None:
    hung, program, named = directory / "hung", directory / "program", directory / "named"
    hung.mkdir()
    shutil.copy("/bin/sleep", program)
    named.symlink_to(hung / "x")
    with (
        subprocess.Popen([program, "60"]) as removed,
        subprocess.Popen([named, "60"], executable="/bin/sleep") as other,
    ):
        program.unlink()
        program.symlink_to(hung / "x")
        try:
            with agent_on(directory, hang=hung) as (process, host):
                for _ in range(2):
                    message = host.next_sample()
                    assert "program_files" not in failed(message)
                    applications = {each["exe_path"]: each for each in message["data"]["applications"]}
                    assert "file_size" not in applications[str(program)]
                    assert applications[psutil.Process().exe()]["file_size"] > 0
                end(process)
        finally:
            removed.kill()
            other.kill()


def test_the_agent_ends_while_a_mount_does_not_answer(directory: Path) -> None:
    hung = directory / "hung"
    hung.mkdir()
    # Its state file lies there too: it is neither read nor written, and not replaced.
    with agent_on(directory, "--state", str(hung / "state.json"), hang=hung) as (process, host):
        host.next_sample()
        log = end(process)
    assert "state file cannot be read" in log
    assert "no answer within" in log


def test_a_sampler_that_is_killed_is_replaced(directory: Path) -> None:
    with agent_on(directory) as (process, host):
        first = host.next_sample()
        sampler = sampler_of(process)
        sampler.kill()
        while (later := host.next_sample())["data"]["system"]["cpu"]["cores_usage"] == []:
            pass
        assert later["boot_id"] == first["boot_id"]
        assert sampler_of(process) != sampler
        assert "was lost" in end(process)


def test_names_that_are_not_utf8_are_sent_as_text(directory: Path) -> None:
    binds = {"/etc/os-release": directory / "os-release"}
    (directory / "os-release").write_bytes(b'NAME="Caf\xe9"\n')
    with agent_on(directory, binds=binds) as (process, host):
        message = host.next_sample()
        assert list(failed(message)) == ["names"]
        assert message["data"]["system"]["system"]["name"] == "Linux"
        end(process)


def test_a_state_file_that_cannot_be_written_is_named_and_affects_only_the_minutes(directory: Path) -> None:
    with agent_on(directory, "--state", str(directory / "none" / "state.json")) as (process, host):
        assert host.next_sample()["data"]["applications"]
        assert "state file not written" in end(process)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_state_file_of_another_kind_is_left_alone(directory: Path, make: Any) -> None:
    state = directory / "state.json"
    make(state)
    mode = state.lstat().st_mode
    with agent_on(directory, "--state", str(state)) as (process, host):
        host.next_sample()
        assert "state file cannot be read" in end(process)
    assert state.lstat().st_mode == mode
