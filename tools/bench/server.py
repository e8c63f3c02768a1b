"""A private store server for a suite of ./dev bench, with fsync on, and what is done to it between rounds."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from tools.harness.cluster import Cluster, create_database, prefix

from guestd.simulator import machine_ids
from gueststore import contract
from gueststore.migrations import migrate
from gueststore.queries import query

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB", "checkpoint_timeout": "15min"}
SEED = 1
COMMITTED = 'SELECT coalesce(sum("committedSeq"), 0) FROM "IngestLedger"'


@contextmanager
def own_server(**settings: str) -> Iterator[tuple[Cluster, Path]]:
    """A private server without a database; also a directory for whatever else the suite needs."""
    directory = Path(tempfile.mkdtemp(prefix="guestd-bench-"))
    directory.chmod(0o755)
    cluster = Cluster(directory / "store", prefix=prefix(), settings=SETTINGS | settings)
    try:
        cluster.start()
        yield cluster, directory
    finally:
        cluster.stop()
        shutil.rmtree(directory)


@contextmanager
def own_store(guests: int, **settings: str) -> Iterator[tuple[str, Path]]:
    """A migrated database with the fleet's machines on a private server: its DSN, and a directory."""
    with own_server(**settings) as (cluster, directory):
        dsn = migrated_database(cluster, "bench")
        _add_machines(dsn, guests)
        yield dsn, directory


def migrated_database(cluster: Cluster, name: str) -> str:
    """A new database with every migration; its DSN."""
    create_database(cluster.dsn("postgres"), name)
    migrate(cluster.dsn(name))
    return cluster.dsn(name)


def _add_machines(dsn: str, guests: int) -> None:
    with psycopg.connect(dsn) as connection:
        template = connection.execute(
            """INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES ('bench', 1, 1, 1)
            RETURNING "id" """
        ).fetchone()
        assert template is not None
        connection.cursor().executemany(
            """INSERT INTO "Machine" ("id", "name", "internalName", "status", "templateId", "os")
            VALUES (%s, 'bench', %s, 'running', %s, 'linux')""",
            [(machine_id, str(machine_id), template[0]) for machine_id in machine_ids(guests, SEED)],
        )


def truncate(dsn: str) -> None:
    """Delete all samples, and the ledger of the spools that they came from."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name in [*(table.name for table in contract.SERIES), "ApplicationUsage", "WindowsService"]:
            connection.execute(f'TRUNCATE "{name}" CASCADE'.encode())
        connection.execute('TRUNCATE "IngestLedger"')
        connection.execute("CHECKPOINT")


@contextmanager
def store_closed(dsn: str) -> Iterator[None]:
    """An outage: `own_store`'s database refuses connections."""
    server = dsn.removesuffix("/bench") + "/postgres"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("ALTER DATABASE bench ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'bench'")
        try:
            yield
        finally:
            connection.execute("ALTER DATABASE bench ALLOW_CONNECTIONS true")


def count(connection: psycopg.Connection[Any], select: str = COMMITTED) -> int:
    """The number that a query gives; by default how many frames are committed."""
    row = connection.execute(select.encode()).fetchone()
    return int(row[0]) if row else 0


def roll_up(connection: psycopg.Connection[Any]) -> int:
    """Roll up all that is noted; returns how many minutes and hours of machines, and hours of the fleet."""
    done = 0
    steps = (("rollups/roll_up_minutes", 5000), ("rollups/roll_up_hours", 500), ("rollups/roll_up_fleet", 12))
    for step, most in steps:
        while some := connection.execute(query(step), {"most": most}).fetchall()[0][0]:
            done += some
    return done


def server_cpu_seconds(directory: Path) -> float:
    """Processor time of `own_store`'s server: its main process, those that it has, and those that have ended."""
    main = int((directory / "store/data/postmaster.pid").read_text().split()[0])
    tick_seconds = 1 / os.sysconf("SC_CLK_TCK")
    used_ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(stat.parent.name), stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended meanwhile
            continue
        if pid == main:
            used_ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == main:
            used_ticks += sum(map(int, fields[11:13]))
    return used_ticks * tick_seconds
