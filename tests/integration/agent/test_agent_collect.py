"""What the agent says about this machine, against what the machine's own tools say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
from tools.harness.waiting import eventually

from guestd.agent.applications import ApplicationWatch
from guestd.agent.collect import Collector
from guestd.agent.deadlines import Deadlines
from guestd.agent.parts import Parts
from guestd.agent.payload import Process
from guestd.agent.processes import ProcessWatch, list_ports
from guestd.agent.usage_state import UsageState
from guestd.wire.decode import decode
from support.daemon import environment

KIB_PER_GIB = 1024 * 1024


def collector(most_processes: int | None = None) -> Collector:
    return Collector(ApplicationWatch(UsageState({})), most_processes, Parts(Deadlines()))


class Watch(ProcessWatch):
    """One whose parts do not fail."""

    def __init__(self) -> None:
        self.parts = Parts(Deadlines())
        super().__init__(self.parts)

    def processes(self) -> list[Process]:
        """All processes."""
        found = self.observe()
        assert found is not None
        assert self.parts.end_sample() == []
        return found


def sample(source: Collector) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(source.body())
    return message


def test_memory_is_what_free_says() -> None:
    memory = sample(collector())["data"]["system"]["memory"]
    lines = subprocess.run(["free", "-k"], capture_output=True, text=True, check=True).stdout.splitlines()
    total, available = int(lines[1].split()[1]), int(lines[1].split()[6])
    assert memory["total_kb"] == total
    assert memory["available_kb"] == pytest.approx(available, rel=0.05)
    # As free of procps 4 counts; older ones leave more out.
    assert memory["used_kb"] == memory["total_kb"] - memory["available_kb"]
    swap_total = int(lines[2].split()[1])
    assert memory["swap_total_kb"] == (swap_total or None)


def test_every_file_system_is_what_df_says() -> None:
    disks = sample(collector())["data"]["system"]["disk"]["usage_stats"]
    assert "/" in [disk["mount_point"] for disk in disks]
    for disk in disks:
        command = ["df", "-k", "--output=size,used,avail", disk["mount_point"]]
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1]
        said = [disk[name] * KIB_PER_GIB for name in ("total_gb", "used_gb", "available_gb")]
        assert said == pytest.approx([int(word) for word in line.split()], rel=0.05, abs=2048)


def test_the_daemon_reads_every_sample_without_a_refusal() -> None:
    source = collector()
    for _ in range(2):
        decoded = decode(b'{"type":"metrics",' + source.body()[1:])
        assert (decoded.refusals, decoded.repairs) == ([], [])


def test_rates_of_the_network_are_null_in_the_first_sample_only() -> None:
    source = collector()
    first, second = (sample(source)["data"]["system"]["network"]["interfaces"] for _ in range(2))
    assert all(interface["bytes_received"] is None for interface in first)
    assert all(isinstance(interface["bytes_received"], int) for interface in second)


def test_a_process_is_reported_with_what_it_runs_and_how_busy_it_is() -> None:
    watch = Watch()
    spinning = "while True: pass"
    child = subprocess.Popen([sys.executable, "-c", spinning])
    try:
        [first] = [known for known in watch.processes() if known.id == child.pid]
        assert first.cpu_usage_percent is None

        def busy() -> Process | None:
            [known] = [known for known in watch.processes() if known.id == child.pid]
            is_busy = (known.cpu_usage_percent or 0) > 5 and spinning in (known.command_line or "")
            return known if is_busy else None

        known = eventually(busy, "its processor time is seen", 10, every_seconds=0.1)
        assert known is not None
    finally:
        child.kill()
        child.wait()
    assert known.memory_usage_kb > 1000
    assert known.start_time is not None
    assert abs(known.start_time - time.time()) < 60
    assert child.pid not in [known.id for known in watch.processes()]


def test_a_process_that_has_ended_and_was_not_waited_for_is_a_zombie_and_not_an_error() -> None:
    watch = Watch()
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        eventually(
            lambda: [known.status for known in watch.processes() if known.id == child.pid] == ["Zombie"], "a zombie", 10
        )
    finally:
        child.wait()


def test_a_command_line_that_is_not_utf8_does_not_spoil_the_sample() -> None:
    child = subprocess.Popen([b"sleep", b"60"], executable="/bin/sleep")
    odd = subprocess.Popen([b"\xff\xfe", b"60"], executable="/bin/sleep")
    try:
        names = {known["id"]: known["command_line"] for known in sample(collector())["data"]["system"]["processes"]}
        assert names[child.pid] == "sleep 60"
        assert names[odd.pid] == "?? 60"
    finally:
        for process in (child, odd):
            process.kill()
            process.wait()


def test_listening_and_udp_sockets_are_reported_in_the_words_of_the_dialect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        with socket.create_connection(tcp.getsockname()) as client:
            ports = list_ports(Watch().processes(), pytest.fail)
            found = {(known.port, known.protocol, known.state, known.is_listening) for known in ports}
            assert (tcp.getsockname()[1], "TCP", "Listen", True) in found
            assert (client.getsockname()[1], "TCP", "Established", False) in found
            assert (udp.getsockname()[1], "UDP", "UDP", True) in found
            [listening] = [known for known in ports if known.port == tcp.getsockname()[1] and known.is_listening]
            assert listening.exe_path is not None
            assert listening.process_name


def test_only_so_many_processes_are_reported_and_those_are_the_busiest() -> None:
    source = collector(most_processes=3)
    sample(source)
    system = sample(source)["data"]["system"]
    percents = [known["cpu_usage_percent"] or 0 for known in system["processes"]]
    assert len(percents) == 3
    assert percents == sorted(percents, reverse=True)


def test_the_interpreter_of_this_test_is_an_application_in_use() -> None:
    applications = {known["exe_path"]: known for known in sample(collector())["data"]["applications"]}
    ours = applications[psutil.Process().exe()]
    assert ours["is_active"] is True
    assert ours["file_size"] > 0


UNPRIVILEGED = """
import os
from guestd.agent.applications import ApplicationWatch
from guestd.agent.collect import Collector
from guestd.agent.deadlines import Deadlines
from guestd.agent.parts import Parts
from guestd.agent.usage_state import UsageState
os.setgroups([]), os.setgid(65534), os.setuid(65534)
os.write(1, Collector(ApplicationWatch(UsageState({})), None, Parts(Deadlines())).body())
"""


def test_an_agent_without_rights_takes_the_program_of_others_from_their_command_line_and_examines_no_file() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    program = os.path.realpath("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        try:
            known = environment()
            done = subprocess.run([sys.executable, "-c", UNPRIVILEGED], capture_output=True, check=True, env=known)
        finally:
            child.kill()
    message = json.loads(done.stdout)
    assert "failed_parts" not in message
    [ours] = [each for each in message["data"]["system"]["processes"] if each["id"] == child.pid]
    assert ours["executable_path"] == program
    [application] = [each for each in message["data"]["applications"] if each["exe_path"] == program]
    assert "file_size" not in application
