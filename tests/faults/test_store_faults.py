"""Every way in which a store may fail under load: nothing is lost or doubled, and guestd goes on by itself."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tools.harness.cluster import Cluster, create_database, prefix, programs_in
from tools.harness.waiting import eventually, wait_seconds

from guestd.core.errors import StoreUnavailable
from guestd.vms.store import open_vm_store
from gueststore.migrations import migrate
from support.daemon import Daemon, add_machine, execute, rows
from support.disk import small_disk_at
from support.faults import Fleet, Reliability, Tally, count_fleet, count_samples, fleet, sample_line
from support.proxy import Proxy

GUESTS = 10
LINES_PER_ROUND = 120
PROCESSES = 20


@contextmanager
def guestd_on(cluster: Cluster, directory: Path, dsn: str | None = None) -> Iterator[Daemon]:
    """A guestd for a migrated database of that server's; not started yet."""
    create_database(cluster.dsn("postgres"), "guestd")
    migrate(cluster.dsn("guestd"))
    daemon = Daemon(directory, dsn or cluster.dsn("guestd"))
    try:
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        for guest in daemon.guests:
            guest.leave()


def is_ready(daemon: Daemon) -> bool:
    return daemon.page("/readyz")[0] == 200


def is_not_ready(daemon: Daemon, words: str) -> bool:
    status, text = daemon.page("/readyz")
    return status == 503 and words in text


def fail_under_load(cluster: Cluster, directory: Path, times: int, fault: Callable[[Daemon, Fleet], None]) -> Tally:
    """The tally of a fleet during that many faults, each made when guestd is ready."""
    with guestd_on(cluster, directory) as daemon:
        daemon.start()
        with fleet(daemon, count=times * LINES_PER_ROUND, guests=GUESTS, processes=PROCESSES) as load:
            for _ in range(times):
                eventually(lambda: is_ready(daemon), "ready")
                fault(daemon, load)
            load.finish(daemon)
        assert daemon.stop() == 0
        return count_fleet(cluster.dsn("guestd"), load.manifest)


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, itself first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def test_a_server_whose_postmaster_is_killed_costs_nothing(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    def kill(daemon: Daemon, load: Fleet) -> None:
        wait_seconds(random.uniform(0.2, 1))
        pid = own_cluster.pid()
        assert pid is not None
        assert load.is_writing()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_not_ready(daemon, "store:"), "/readyz reports that the store is gone")
        own_cluster.start()

    kills = reliability.rounds(quick=1, full=15)
    reliability.record("database killed (SIGKILL)", kills, fail_under_load(own_cluster, directory, kills, kill))


def test_a_server_that_stands_still_for_a_while_costs_nothing(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    def stop_and_continue(daemon: Daemon, _: Fleet) -> None:
        wait_seconds(random.uniform(0.2, 1))
        signal_server(own_cluster, signal.SIGSTOP)
        eventually(lambda: daemon.metric("guestd_spool_frames") > 3 * GUESTS, "frames wait")
        eventually(lambda: "store: no answer for" in daemon.page("/readyz")[1], "/readyz reports it")
        signal_server(own_cluster, signal.SIGCONT)

    stops = reliability.rounds(quick=1, full=10)
    tally = fail_under_load(own_cluster, directory, stops, stop_and_continue)
    reliability.record("database stopped (SIGSTOP) and continued", stops, tally)


def signal_server(cluster: Cluster, number: signal.Signals) -> None:
    pid = cluster.pid()
    assert pid is not None
    for each in descendants(pid):
        # A session's process may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)


@pytest.mark.asyncio
async def test_the_vm_reconciler_gives_up_a_server_that_stands_still(own_cluster: Cluster) -> None:
    create_database(own_cluster.dsn("postgres"), "guestd")
    migrate(own_cluster.dsn("guestd"))
    async with (
        asyncio.timeout(100),
        open_vm_store(own_cluster.dsn("guestd"), name="h", uri="qemu:///system", version="1") as store,
    ):
        signal_server(own_cluster, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="no reply within 30 s"):
                await store.read_machines([])
            # The connection is given up: who waited for it need not wait again.
            with pytest.raises(StoreUnavailable, match="closed"):
                await store.touch_host(0)
        finally:
            signal_server(own_cluster, signal.SIGCONT)


def test_a_server_that_is_restarted_within_a_copy_costs_nothing(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    restarts = reliability.rounds(quick=1, full=15)
    with guestd_on(own_cluster, directory) as daemon:
        daemon.start()
        with (
            fleet(daemon, count=restarts * LINES_PER_ROUND, guests=GUESTS, processes=60) as load,
            ExitStack() as watching,
        ):
            for _ in range(restarts):
                watcher = watching.enter_context(psycopg.connect(own_cluster.dsn("guestd"), autocommit=True))

                def copies(watcher: psycopg.Connection = watcher) -> bool:
                    return watcher.execute("SELECT 1 FROM pg_stat_progress_copy").fetchone() is not None

                eventually(copies, "a COPY is under way", 60)
                own_cluster.stop()
                own_cluster.start()
            load.finish(daemon)
        assert daemon.stop() == 0
        reliability.record(
            "database restarted in mid-COPY", restarts, count_fleet(own_cluster.dsn("guestd"), load.manifest)
        )


def test_a_server_that_takes_no_writes_for_a_while_costs_nothing(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    server = own_cluster.dsn("postgres")

    def refuse_writes(daemon: Daemon, _: Fleet) -> None:
        execute(server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        eventually(lambda: is_not_ready(daemon, "read-only"), "/readyz reports that the store is read-only")
        execute(
            make_conninfo(server, options="-c default_transaction_read_only=off"),
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )

    times = reliability.rounds(quick=1, full=10)
    reliability.record("database read-only", times, fail_under_load(own_cluster, directory, times, refuse_writes))


def test_a_server_whose_disk_is_full_costs_nothing(directory: Path, reliability: Reliability) -> None:
    home = directory / "server"
    home.mkdir()
    directory.chmod(0o755)
    with small_disk_at(home, mebibytes=400):
        cluster = Cluster(home, prefix=prefix(), settings={"max_wal_size": "64MB"})

        def fill_the_disk(daemon: Daemon, _: Fleet) -> None:
            with (home / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(65536))
            eventually(lambda: is_not_ready(daemon, "store:"), "/readyz reports that the store fails", 60)
            wait_seconds(1)
            (home / "filler").unlink()
            cluster.start()  # a server that could not write its log has ended itself

        times = reliability.rounds(quick=1, full=5)
        try:
            cluster.start()
            tally = fail_under_load(cluster, directory, times, fill_the_disk)
            reliability.record("database out of disk", times, tally)
        finally:
            cluster.stop()


def test_a_server_without_a_free_connection_costs_nothing(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    server = own_cluster.dsn("postgres")
    execute(server, "ALTER SYSTEM SET max_connections = 20", "ALTER SYSTEM SET superuser_reserved_connections = 0")
    own_cluster.stop()
    own_cluster.start()
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guestd'"

    def take_all_connections(daemon: Daemon, _: Fleet) -> None:
        with ExitStack() as crowd:
            first = crowd.enter_context(psycopg.connect(own_cluster.dsn("guestd"), autocommit=True))

            def is_crowded_out() -> bool:
                first.execute(ending)
                try:
                    while True:
                        crowd.enter_context(psycopg.connect(own_cluster.dsn("guestd")))
                except psycopg.OperationalError:
                    return is_not_ready(daemon, "too many clients")

            eventually(is_crowded_out, "/readyz reports that no connection is left", 60)

    times = reliability.rounds(quick=1, full=10)
    tally = fail_under_load(own_cluster, directory, times, take_all_connections)
    reliability.record("database out of connections", times, tally)


def _port(dsn: str) -> int:
    return int(str(conninfo_to_dict(dsn)["port"]))


def test_connections_that_are_cut_at_any_byte_cost_nothing(daemon: Daemon, reliability: Reliability) -> None:
    cuts = reliability.rounds(quick=8, full=60)
    # As often within the start of a connection as within a batch.
    highest = itertools.cycle((4_000, 400_000))
    direct = daemon.dsn
    with Proxy(_port(direct), lambda: random.randrange(1, next(highest))) as proxy:
        daemon.dsn = make_conninfo(direct, port=proxy.port)
        tally = _store_through(daemon, proxy, cuts, direct)
    reliability.record("connection to the database cut at random bytes", proxy.cuts, tally)


def test_answers_to_commit_that_are_lost_cost_nothing(daemon: Daemon, reliability: Reliability) -> None:
    cuts = reliability.rounds(quick=8, full=60)
    direct = daemon.dsn

    def is_last(chunk: bytes) -> bool:
        return b"COMMIT" in chunk and random.random() < 0.5

    with Proxy(_port(direct), lambda: sys.maxsize, is_last) as proxy:
        daemon.dsn = make_conninfo(direct, port=proxy.port)
        tally = _store_through(daemon, proxy, cuts, direct)
    assert tally.stored == tally.sent
    reliability.record("connection to the database cut in the answer to COMMIT", proxy.cuts, tally)


def is_cut_or_stored(daemon: Daemon, load: Fleet, proxy: Proxy, cuts: int) -> bool:
    return proxy.cuts >= cuts or (not load.is_writing() and daemon.metric("guestd_spool_frames") == 0)


def _store_through(daemon: Daemon, proxy: Proxy, cuts: int, direct: str) -> Tally:
    """The tally of fleets whose samples reach the store through the proxy, until it has cut that many times."""
    daemon.start()
    daemon.dsn = direct
    tally, first = Tally(), 0
    # One fleet may be stored in fewer batches than there are to be cuts.
    while proxy.cuts < cuts:
        with fleet(daemon, count=LINES_PER_ROUND, guests=GUESTS, processes=PROCESSES, first=first) as load:
            eventually(partial(is_cut_or_stored, daemon, load, proxy, cuts), "the connections were cut", 300)
            if proxy.cuts >= cuts:
                proxy.stop_cutting()
            load.finish(daemon)
        tally += count_fleet(direct, load.manifest)
        first += GUESTS
    assert daemon.stop() == 0
    return tally


def test_a_store_restored_from_an_older_dump_lacks_what_came_after_it_and_guestd_names_the_range(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    dsn, programs = own_cluster.dsn("guestd"), programs_in(prefix())
    dump = directory / "dump"
    with guestd_on(own_cluster, directory) as daemon:
        machine_id = add_machine(dsn)
        guest = daemon.guest(machine_id)
        daemon.start()
        guest.write(b"".join(sample_line(number) for number in range(1, 101)))
        eventually(lambda: rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(100,)], "the first hundred")
        subprocess.run([programs / "pg_dump", "-Fc", "-f", dump, dsn], check=True, capture_output=True)
        guest.write(b"".join(sample_line(number) for number in range(101, 201)))
        eventually(lambda: rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(200,)], "the second hundred")
        eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool has forgotten them")
        _restore(own_cluster, programs, dump)
        guest.write(b"".join(sample_line(number) for number in range(201, 301)))
        eventually(lambda: rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(200,)], "the third hundred", 60)
        eventually(lambda: is_ready(daemon), "ready")
        alerts = [line for line in daemon.logged() if "restored from a backup" in line.get("event", "")]
        assert [(alert["missing_from"], alert["missing_to"]) for alert in alerts] == [(101, 200)]
        assert daemon.stop() == 0
    tally = count_samples(dsn, {machine_id: range(1, 301)}, destroyed={machine_id: range(101, 201)})
    assert tally.destroyed == 100
    reliability.record(
        "store restored from an older dump", 1, tally, "destroyed: stored after the dump; the log names them"
    )


def _restore(cluster: Cluster, programs: Path, dump: Path) -> None:
    server, dsn = cluster.dsn("postgres"), cluster.dsn("guestd")
    execute(server, "DROP DATABASE guestd WITH (FORCE)", "CREATE DATABASE restored TEMPLATE template0")
    restored = cluster.dsn("restored")
    execute(restored, "CREATE EXTENSION timescaledb", "SELECT timescaledb_pre_restore()")
    subprocess.run([programs / "pg_restore", "-d", restored, dump], check=False, capture_output=True)
    execute(restored, "SELECT timescaledb_post_restore()")
    # Only whole does it bear its name again, as an operator would do it.
    execute(
        server,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'restored'",
        "ALTER DATABASE restored RENAME TO guestd",
    )
    assert rows(dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(100,)]
