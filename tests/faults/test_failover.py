"""Two real servers, one a streaming replica: guestd leaves the one that takes no more writes, and nothing is lost."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict
from tools.harness.cluster import Cluster, prefix
from tools.harness.waiting import eventually, wait_seconds

from faults.test_store_faults import GUESTS, LINES_PER_ROUND, PROCESSES, guestd_on, is_ready
from support.daemon import Daemon, execute, rows
from support.faults import Fleet, Reliability, count_fleet, fleet


@contextmanager
def replica_of(primary: Cluster) -> Iterator[Cluster]:
    """A streaming replica that the primary waits for with every commit."""
    directory = Path(tempfile.mkdtemp(prefix="guestd-"))
    replica = Cluster(directory, prefix=prefix())
    try:
        replica.follow(primary.dsn("postgres"))
        execute(
            primary.dsn("postgres"),
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "SELECT pg_reload_conf()",
        )
        streaming = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        eventually(lambda: rows(primary.dsn("postgres"), streaming), "the replica follows")
        yield replica
    finally:
        replica.stop()
        shutil.rmtree(directory)


def either(*servers: Cluster) -> str:
    """A connection string that names all of them."""
    ports = ",".join(str(conninfo_to_dict(server.dsn("guestd"))["port"]) for server in servers)
    return f"host={','.join(['127.0.0.1'] * len(servers))} port={ports} dbname=guestd user=postgres"


def test_a_primary_that_dies_is_replaced_by_its_promoted_replica_and_nothing_is_lost(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    with guestd_on(own_cluster, directory) as daemon, replica_of(own_cluster) as replica:
        with _under_load(daemon, own_cluster, replica) as load:
            pid = own_cluster.pid()
            assert pid is not None
            assert load.is_writing()
            os.kill(pid, signal.SIGKILL)
            _promote(replica)
            load.finish(daemon)
        assert daemon.stop() == 0
        tally = count_fleet(replica.dsn("guestd"), load.manifest)
    reliability.record("failover: primary killed, replica promoted", 1, tally, "synchronous replication")


def test_a_primary_that_is_demoted_is_left_at_once_and_nothing_is_lost(
    own_cluster: Cluster, directory: Path, reliability: Reliability
) -> None:
    with guestd_on(own_cluster, directory) as daemon, replica_of(own_cluster) as replica:
        with _under_load(daemon, own_cluster, replica) as load:
            assert load.is_writing()
            execute(
                own_cluster.dsn("postgres"),
                "ALTER SYSTEM SET default_transaction_read_only = on",
                "SELECT pg_reload_conf()",
            )
            # It goes on answering, and the sessions that it has are still open.
            eventually(lambda: not is_ready(daemon), "guestd has left it")
            _promote(replica)
            load.finish(daemon)
        assert own_cluster.pid() is not None
        assert daemon.stop() == 0
        tally = count_fleet(replica.dsn("guestd"), load.manifest)
    reliability.record("failover: primary made read-only, replica promoted", 1, tally, "synchronous replication")


@contextmanager
def _under_load(daemon: Daemon, primary: Cluster, replica: Cluster) -> Iterator[Fleet]:
    daemon.dsn = either(primary, replica)
    daemon.start()
    with fleet(daemon, count=LINES_PER_ROUND, guests=GUESTS, processes=PROCESSES) as load:
        eventually(lambda: is_ready(daemon), "ready")
        wait_seconds(1)
        yield load


def _promote(replica: Cluster) -> None:
    execute(
        replica.dsn("postgres"),
        "SELECT pg_promote(wait => true, wait_seconds => 60)",
        "ALTER SYSTEM RESET synchronous_standby_names",
        "SELECT pg_reload_conf()",
    )
