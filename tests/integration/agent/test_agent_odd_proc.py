"""The agent's readers over a /proc of our own, in which one file is not what it should be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestd.agent.applications import ApplicationWatch
from guestd.agent.collect import Collector
from guestd.agent.deadlines import Deadlines
from guestd.agent.parts import Parts
from guestd.agent.usage_state import UsageState
from guestd.wire.decode import decode

# psutil warns of figures that it does not find.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
MEGABYTE = 1024 * 1024
MOST_LINES = 100
ODD, GOOD = 77, 78
PROCESS_FILES = ("stat", "status", "statm", "io", "cmdline")
# By file, the parts that may fail for it. Of a process the other one must still be there.
PARTS = {
    "stat": {"cpu", "uptime", "processes"},
    "meminfo": {"memory", "swap"},
    "vmstat": {"swap"},
    "diskstats": {"disks"},
    "filesystems": {"file_systems"},
    "self/mounts": {"file_systems", "mounts"},
    "net/dev": {"network", "links"},
    **{name: {"ports"} for name in ("net/tcp", "net/tcp6", "net/udp", "net/udp6")},
    **{f"{ODD}/{name}": {"processes"} for name in PROCESS_FILES},
}


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[Path]:
    """A copy of what the agent reads of /proc, with two processes that are this one."""
    for name in PARTS:
        if not name.startswith(str(ODD)):
            copy(Path("/proc", name), tmp_path / name)
    for pid in (ODD, GOOD):
        for name in PROCESS_FILES:
            copy(Path("/proc/self", name), tmp_path / str(pid) / name)
        (tmp_path / str(pid) / "exe").symlink_to(Path("/proc/self/exe").readlink())
        (tmp_path / str(pid) / "fd").mkdir()
    psutil.PROCFS_PATH = str(tmp_path)
    yield tmp_path
    psutil.PROCFS_PATH = "/proc"
    for file in tmp_path.rglob("*"):
        if file.is_fifo():  # let the threads end that wait for it
            os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))


def copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # The first lines are enough of thousands of sockets of other tests.
    place.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:MOST_LINES]))


def sample(part_seconds: float = 60.0) -> dict[str, Any]:
    """Two samples of a new agent; the last one, which the daemon must take as it is."""
    parts = Parts(Deadlines(), part_seconds=part_seconds)
    collector = Collector(ApplicationWatch(UsageState({})), None, parts)
    collector.body()
    body = collector.body()
    decoded = decode(b'{"type":"metrics",' + body[1:])
    assert (decoded.refusals, decoded.repairs) == ([], [])
    message: dict[str, Any] = json.loads(body)
    return message


def check(name: str, **deadlines: float) -> dict[str, str]:
    """Check that a sample is whole but for what depends on this file; returns what failed."""
    message = sample(**deadlines)
    failed = {each["part"]: each["reason"] for each in message.get("failed_parts", [])}
    allowed = PARTS[name]
    assert failed.keys() <= allowed
    system = message["data"]["system"]
    assert GOOD in [known["id"] for known in system["processes"]]
    there = {
        "cpu": system["cpu"]["cores_usage"],
        "memory": system["memory"]["total_kb"],
        "file_systems": [disk["mount_point"] for disk in system["disk"]["usage_stats"]],
        "network": [each["bytes_received"] for each in system["network"]["interfaces"]],
        "uptime": system["system"]["uptime_seconds"],
        "load": system["system"]["load_average"],
        "applications": message["data"]["applications"],
    }
    assert {part for part, value in there.items() if not value} <= failed.keys() | (
        allowed & {"cpu", "network", "memory"}
    )
    return failed


def replace(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


ODD_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: None,
    "empty": lambda file: file.write_bytes(b""),
    "directory": lambda file: file.mkdir(),
    "loop": lambda file: file.symlink_to(file.name),
    "binary": lambda file: file.write_bytes(bytes(range(256)) * 20),
    "words": lambda file: file.write_text("a b c\nd e f g h i j k l m n o p q r s t u v w x y z\n: : :\n"),
    "negative": lambda file: file.write_text("-1 -1 -1: -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1\n" * 5),
    "not finite": lambda file: file.write_text("btime inf\ncpu inf nan inf\ncpu0 inf nan inf\n: inf nan inf\n"),
    "huge": lambda file: file.write_text("cpu " + "9" * 5000 + " 1 2 3\n" * 3),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_an_odd_file_of_proc_affects_only_its_values(proc: Path, kind: str) -> None:
    for name in PARTS:
        before = (proc / name).read_bytes()
        replace(proc / name, ODD_FILES[kind])
        check(name)
        if (proc / name).is_dir():
            (proc / name).rmdir()
        (proc / name).unlink(missing_ok=True)
        (proc / name).write_bytes(before)
    assert check("stat") == {}


def test_a_line_that_meminfo_lacks_is_named_with_its_file(proc: Path) -> None:
    lines = (proc / "meminfo").read_text().splitlines(keepends=True)
    (proc / "meminfo").write_text("".join(line for line in lines if not line.startswith("MemTotal")))
    assert check("meminfo") == {"memory": f"UnreadableFile: {proc}/meminfo has no line MemTotal"}


def test_a_line_of_meminfo_that_cannot_be_read_is_named_with_its_file(proc: Path) -> None:
    for line in ("\n", "MemFree: many kB\n"):
        (proc / "meminfo").write_text("MemTotal: 1 kB\n" + line)
        assert f"{proc}/meminfo has a line that cannot be read: " in check("meminfo")["memory"]


def test_a_line_of_diskstats_that_cannot_be_read_is_named_and_the_disks_are_read(proc: Path) -> None:
    before = (proc / "diskstats").read_text()
    io_stats = sample()["data"]["system"]["disk"]["io_stats"]
    (proc / "diskstats").write_text(f"8 0\n\n{before}")
    message = sample()
    reason = f"{proc}/diskstats has a line that cannot be read: 8 0"
    assert message["failed_parts"] == [{"part": "disks", "reason": reason}]
    assert message["data"]["system"]["disk"]["io_stats"] == io_stats


def test_a_line_of_diskstats_of_what_is_no_disk_of_this_machine_is_not_needed(proc: Path) -> None:
    before = (proc / "diskstats").read_text()
    (proc / "diskstats").write_text(f"7 0 no_such_disk\n8 0 {'x' * 5000} 1 1 1 1 1 1 1\n{before}")
    assert check("diskstats") == {}


def test_a_sample_in_which_no_process_can_be_read_reports_it_and_ends_no_application(proc: Path) -> None:
    for pid in (ODD, GOOD):
        (proc / str(pid) / "stat").unlink()
    message = sample()
    assert message["data"]["applications"] == []
    assert "applications" in {each["part"] for each in message["failed_parts"]}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(PARTS)), at=st.integers(0), odd=st.binary(max_size=30), length=st.integers(0, 30))
def test_a_damaged_file_of_proc_affects_only_its_values(
    proc: Path, name: str, at: int, odd: bytes, length: int
) -> None:
    before = (proc / name).read_bytes()
    at %= len(before) + 1
    (proc / name).write_bytes(before[:at] + odd + before[at + length :])
    try:
        check(name)
    finally:
        (proc / name).write_bytes(before)


@pytest.mark.parametrize("name", ["diskstats", f"{ODD}/cmdline"])
def test_a_file_of_proc_that_does_not_answer_affects_only_its_values(proc: Path, name: str) -> None:
    replace(proc / name, os.mkfifo)
    [reason] = check(name, part_seconds=3.0).values()
    assert "NoAnswer: an earlier call has not returned" in reason


def test_a_socket_that_psutil_does_not_know_hides_only_those_of_its_kind(proc: Path) -> None:
    """TCP_NEW_SYN_RECV, which the kernel may print as 0C."""
    lines = Path("/proc/net/tcp").read_text().splitlines(keepends=True)
    line = "   0: 0100007F:1F90 00000000:0000 {} 00000000:00000000 00:00000000 00000000 0 0 1 1 0 100 0 0 10 0\n"
    (proc / "net/tcp").write_text(lines[0] + line.format("0C"))
    (proc / "net/udp").write_text(lines[0] + line.format("07"))
    message = sample()
    assert [each["part"] for each in message["failed_parts"]] == ["ports"]
    assert {"UDP"} <= {port["protocol"] for port in message["data"]["system"]["ports"]}


def test_a_clock_that_is_set_makes_no_process_busy(proc: Path) -> None:
    used = b"12345678"
    for pid in (ODD, GOOD):
        fields = (proc / str(pid) / "stat").read_bytes().split()
        fields[13] = used
        (proc / str(pid) / "stat").write_bytes(b" ".join(fields) + b"\n")
    parts = Parts(Deadlines())
    collector = Collector(ApplicationWatch(UsageState({})), None, parts)
    collector.body()
    text = (proc / "stat").read_text()
    boot = next(line for line in text.splitlines() if line.startswith("btime"))
    (proc / "stat").write_text(text.replace(boot, f"btime {int(boot.split()[1]) - 1}"))
    message = json.loads(collector.body())
    assert {known["cpu_usage_percent"] for known in message["data"]["system"]["processes"]} == {0.0}


def test_thousands_of_processes_are_a_message_that_fits(proc: Path) -> None:
    for pid in range(100, 2100):
        shutil.copytree(proc / str(GOOD), proc / str(pid), symlinks=True)
    message = sample()
    assert "failed_parts" not in message
    assert len(message["data"]["system"]["processes"]) > 1000
    assert len(json.dumps(message)) < 2 * MEGABYTE
