"""The store goes away under load: what was acknowledged is in the tables exactly once."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tools.cluster import Cluster, create_database

from fix_daemon import Daemon, add_machine, command, environment, eventually, let_it_work, rows
from guestd.simulate import machine_ids
from gueststore.migrations import migrate

GUESTS = 10
LINES_PER_GUEST = 200


def test_sessions_that_the_server_ends_cost_nothing(daemon: Daemon) -> None:
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guestd'"
    _load_with_faults(daemon, [lambda: rows(daemon.dsn, ending)] * 16)


def test_a_server_that_crashes_and_recovers_costs_nothing(own_cluster: Cluster, directory: Path) -> None:
    create_database(own_cluster.dsn("postgres"), "guestd")
    migrate(own_cluster.dsn("guestd"))
    daemon = Daemon(directory, own_cluster.dsn("guestd"))

    def crash() -> None:
        pid = own_cluster.pid()
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: no checkpoint, recovery at the next start
        eventually(lambda: own_cluster.pid() is None, "the server is gone")
        own_cluster.start()

    try:
        _load_with_faults(daemon, [crash] * 5)
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()


def _load_with_faults(daemon: Daemon, faults: list[Callable[[], object]]) -> None:
    """Run a fleet, make the faults happen meanwhile, and demand every line of it exactly once."""
    machines = machine_ids(GUESTS, seed=1)
    for machine_id in machines:
        add_machine(daemon.dsn, machine_id)
    daemon.start()
    daemon.url()
    fleet = subprocess.Popen(
        command(
            "guestd", "simulate", "--directory", str(daemon.channels), "--guests", str(GUESTS), "--interval", "0.05",
            "--processes", "10", "--count", str(LINES_PER_GUEST),
        ),
        env=environment(),
    )  # fmt: skip
    try:
        for fault in faults:
            let_it_work(random.uniform(0, 0.6))
            fault()
        assert fleet.wait(60) == 0
        eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty", 60)
    finally:
        fleet.kill()
        fleet.wait()
    # Fewer than there were: while guestd backs off there is no session to end.
    assert daemon.metric("guestd_store_lost_total") >= 3
    assert daemon.metric("guestd_agent_lines_dropped_total") == 0
    assert daemon.stop() == 0
    stored = dict(rows(daemon.dsn, 'SELECT "machineId", count(*) FROM "SystemMetrics" GROUP BY 1'))
    assert stored == dict.fromkeys(machines, LINES_PER_GUEST)
    processes = dict(rows(daemon.dsn, 'SELECT "machineId", count(*) FROM "ProcessSnapshot" GROUP BY 1'))
    assert processes == dict.fromkeys(machines, LINES_PER_GUEST * 10)
    assert rows(daemon.dsn, 'SELECT count(*) FROM "QuarantinedFrame"') == [(0,)]
