"""`guestd agent` on this machine, through guestd into TimescaleDB: the tables say what this machine's own tools say.

Everything is read from the database; nothing here looks into the daemon.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from tools.harness.waiting import eventually

from guestd.agent.services import list_services
from support.daemon import Daemon, add_machine, command, environment, rows

# A busy machine moves between two readings; each attempt takes fresh ones.
ATTEMPTS = 20
MAX_AGE_SECONDS = 2.0
MAX_DIFFERENCE = 0.05
# The agent rounds to thousandths of a GiB, which is more than 5 % of an all but empty file system.
ROUNDING_KIB = 1024
KIB_PER_GIB = 1024**2
Figures = dict[tuple[str, str], float]
TABLES = ("SystemMetrics", "ProcessSnapshot", "PortUsage", "ApplicationUsage", "ApplicationUsageHistory")


@pytest.fixture
def own_id(daemon: Daemon) -> Iterator[UUID]:
    """This machine, watched by its agent every second, with a guestd that stores what it reports."""
    own_id = add_machine(daemon.dsn)
    arguments = ["--listen", str(daemon.channels / f"{own_id}.socket"), "--interval", "1"]
    arguments += ["--state", str(daemon.directory / "agent.json")]
    daemon.start()
    with subprocess.Popen(command("guestd", "agent", *arguments), env=environment()) as agent:
        yield own_id
        agent.terminate()


def test_this_machine_is_in_every_table_that_applies(daemon: Daemon, own_id: UUID) -> None:
    def empty() -> list[str]:
        counted = 'SELECT count(*) FROM "{}" WHERE "machineId" = %s'
        return [table for table in TABLES if rows(daemon.dsn, counted.format(table), own_id) == [(0,)]]

    eventually(lambda: empty() == [], f"rows in each of {TABLES}")


def test_a_port_that_this_test_listens_on_is_there_with_its_process(daemon: Daemon, own_id: UUID) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = eventually(
            lambda: rows(
                daemon.dsn,
                """SELECT DISTINCT port."protocol", port."isListening", process."processId"
                FROM "PortUsage" AS port
                JOIN "ProcessSnapshot" AS process USING ("machineId", "timestamp", "processId")
                WHERE port."machineId" = %s AND port."port" = %s""",
                own_id,
                listener.getsockname()[1],
            ),
            "the port",
        )
    assert found == [("TCP", True, os.getpid())]


# Without systemd, as in most containers, the agent reports no services, and then there must be no rows.
def test_there_are_services_exactly_when_the_agent_reports_some(daemon: Daemon, own_id: UUID) -> None:
    counted = 'SELECT count(*) FROM "SystemMetrics" WHERE "machineId" = %s'
    eventually(lambda: rows(daemon.dsn, counted, own_id) > [(1,)], "two samples")
    stored = rows(daemon.dsn, 'SELECT "serviceName" FROM "WindowsService" WHERE "machineId" = %s', own_id)
    assert (stored != []) == (list_services() != [])


def test_memory_and_disks_are_within_5_percent_of_free_and_df(daemon: Daemon, own_id: UUID) -> None:
    taken_at = datetime.min.replace(tzinfo=UTC)
    for _ in range(ATTEMPTS):
        taken_at, stored = another_sample_kib(daemon.dsn, own_id, taken_at)
        mount_points = {name for name, _ in stored} - {"memory"}
        differences = differing(stored, free_kib() | df_kib(mount_points))
        age_seconds = (datetime.now(UTC) - taken_at).total_seconds()
        if not differences and age_seconds < MAX_AGE_SECONDS:
            return
    pytest.fail(f"in no sample of {ATTEMPTS}; the last one was {age_seconds} s old: {differences}")


def another_sample_kib(dsn: str, machine_id: UUID, after: datetime) -> tuple[datetime, Figures]:
    """The newest sample, taken after that time, and its figures in KiB by (memory or mount point, what)."""
    statement = """SELECT "timestamp", "totalMemoryKB", "usedMemoryKB", "diskUsageStats" FROM "SystemMetrics"
        WHERE "machineId" = %s AND "timestamp" > %s ORDER BY "timestamp" DESC LIMIT 1"""
    taken_at, total, used, disks = eventually(lambda: rows(dsn, statement, machine_id, after), "another sample")[0]
    assert disks, "no disk is stored"
    figures = {("memory", "total"): total, ("memory", "used"): used}
    for disk in disks:
        figures[disk["mountPoint"], "total"] = disk["totalGB"] * KIB_PER_GIB
        figures[disk["mountPoint"], "used"] = disk["usedGB"] * KIB_PER_GIB
    return taken_at, figures


def free_kib() -> Figures:
    """What `free` says; where it is not installed, what it would have said from the kernel's own figures."""
    if shutil.which("free"):
        memory = subprocess.check_output(["free", "-k"], text=True).splitlines()[1]
        total, used, *_ = (int(column) for column in memory.split()[1:])
    else:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        total, used = kib["MemTotal"], kib["MemTotal"] - kib["MemAvailable"]
    return {("memory", "total"): total, ("memory", "used"): used}


def df_kib(mount_points: set[str]) -> Figures:
    """What `df` says of these."""
    figures: Figures = {}
    for mount_point in mount_points:
        said = subprocess.check_output(["df", "-k", "--output=size,used", mount_point], text=True)
        total, used = said.splitlines()[1].split()
        figures |= {(mount_point, "total"): float(total), (mount_point, "used"): float(used)}
    return figures


def differing(stored: Figures, read: Figures) -> dict[tuple[str, str], tuple[float, float]]:
    """What is further apart than it may be: (stored, read)."""
    return {
        name: (stored[name], read[name])
        for name in stored
        if abs(stored[name] - read[name]) > max(MAX_DIFFERENCE * read[name], ROUNDING_KIB)
    }
