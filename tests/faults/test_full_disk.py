"""The spool's disk is really full: a small tmpfs that the frames of an outage fill to the last block."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fix_daemon import Daemon, add_machine, command, environment, eventually, execute, rows
from fix_disk import small_disk_at
from guestd.simulate import machine_ids

GUESTS = 5
LINES_PER_GUEST = 300


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    """32 MiB for the spool, half of them for its ballast; the fleet will want more."""
    disk = directory / "disk"
    disk.mkdir()
    with small_disk_at(disk, mebibytes=32):
        yield disk


def test_a_full_disk_loses_nothing_and_empties_by_itself_when_the_store_is_back(
    small_disk: Path, daemon: Daemon
) -> None:
    machines = machine_ids(GUESTS, seed=1)
    for machine_id in machines:
        add_machine(daemon.dsn, machine_id)
    daemon.spool = small_disk / "spool"
    database = daemon.dsn.rsplit("/", 1)[1]
    server = daemon.dsn.removesuffix(database) + "postgres"
    daemon.start()
    eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
    execute(server, f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    execute(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    fleet = subprocess.Popen(
        command(
            "guestd", "simulate", "--directory", str(daemon.channels), "--guests", str(GUESTS), "--interval", "0",
            "--processes", "50", "--count", str(LINES_PER_GUEST),
        ),
        env=environment(),
    )  # fmt: skip
    try:
        eventually(lambda: "spool: it cannot be written" in daemon.page("/readyz")[1], "the disk is full", 60)
        # It must come up again on the full disk, or nothing would ever empty it.
        daemon.kill()
        daemon.start()
        eventually(lambda: daemon.metric("guestd_spool_frames") > 0, "the spool is opened")
        execute(server, f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
        assert fleet.wait(90) == 0
        eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty")
    finally:
        fleet.kill()
        fleet.wait()
    assert daemon.page("/readyz") == (200, "ready\n")
    assert daemon.stop() == 0
    stored = dict(rows(daemon.dsn, 'SELECT "machineId", count(*) FROM "SystemMetrics" GROUP BY 1'))
    assert stored == dict.fromkeys(machines, LINES_PER_GUEST)
