"""The store goes away under load: what was acknowledged is in the tables exactly once."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from tools.harness.cluster import Cluster, create_database
from tools.harness.waiting import eventually, wait_seconds

from gueststore.migrations import migrate
from support.daemon import Daemon, rows
from support.faults import Reliability, Tally, count_fleet, fleet

GUESTS = 10
LINES_PER_FAULT = 40
PROCESSES = 10


def test_sessions_that_the_server_ends_cost_nothing(daemon: Daemon, reliability: Reliability) -> None:
    times = reliability.rounds(quick=8, full=40)
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guestd'"
    tally = _run_faults(daemon, times, lambda: eventually(lambda: rows(daemon.dsn, ending), "a session to end", 60))
    reliability.record("sessions ended by the database", times, tally)


def test_a_server_that_crashes_and_recovers_costs_nothing(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    create_database(own_cluster.dsn("postgres"), "guestd")
    migrate(own_cluster.dsn("guestd"))
    daemon = Daemon(directory, own_cluster.dsn("guestd"))
    times = reliability.rounds(quick=4, full=20)

    def crash() -> None:
        pid = own_cluster.pid()
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: no checkpoint, recovery at the next start
        eventually(lambda: own_cluster.pid() is None, "the server is gone")
        own_cluster.start()

    try:
        tally = _run_faults(daemon, times, crash)
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
    reliability.record("database crashed, recovering", times, tally)


def _run_faults(daemon: Daemon, times: int, fault: Callable[[], object]) -> Tally:
    """Run a fleet, make the fault happen meanwhile, and demand every line of it exactly once."""
    lines = times * LINES_PER_FAULT
    daemon.start()
    daemon.url()
    with fleet(daemon, count=lines, guests=GUESTS, processes=PROCESSES) as load:
        for _ in range(times):
            wait_seconds(random.uniform(0, 0.6))
            fault()
        load.finish(daemon)
    assert daemon.metric("guestd_store_lost_total") >= 1
    assert daemon.metric("guestd_agent_lines_dropped_total") == 0
    assert daemon.stop() == 0
    tally = count_fleet(daemon.dsn, load.manifest)
    assert tally.stored == GUESTS * lines
    processes = dict(rows(daemon.dsn, 'SELECT "machineId", count(*) FROM "ProcessSnapshot" GROUP BY 1'))
    assert processes == dict.fromkeys(load.machines, lines * PROCESSES)
    return tally
