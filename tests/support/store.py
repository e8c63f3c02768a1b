"""A real TimescaleDB for tests: one server a session, one database a test.

The server is a private one in a temporary directory, or the one that GUESTD_DATABASE_DSN names.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tools.harness.cluster import Cluster, create_database, prefix

from gueststore.migrations import migrate

MEMORY = Path("/dev/shm")
# Several times what all tests have ever needed, WAL included.
MEMORY_MIN_BYTES = 4 * 1024**3


class Server(Protocol):
    """A server on which we may create databases."""

    def dsn(self, database: str) -> str:
        """Return the address of `database` on it."""


@dataclass(frozen=True)
class GivenServer:
    """The server of GUESTD_DATABASE_DSN."""

    address: str

    def dsn(self, database: str) -> str:
        """Return the address of `database` on it."""
        return make_conninfo(self.address, dbname=database)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Server]:
    """The server of this session."""
    given = os.environ.get("GUESTD_DATABASE_DSN")
    if given:
        yield GivenServer(given)
        return
    # Not pytest's tmp_path: too long for a socket, and closed to the user that root's server runs as. In memory,
    # where there is room, a database is copied in 30 ms; on disks that we have met it took from 100 to 600.
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_MIN_BYTES
    settings = {"fsync": "off", "shared_preload_libraries": "timescaledb,pg_stat_statements"}
    with private_cluster(MEMORY if in_memory else None, settings) as cluster:
        yield cluster


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A server that a test may kill, with fsync as in production."""
    with private_cluster(None, {}) as cluster:
        yield cluster


@contextmanager
def private_cluster(parent: Path | None, settings: Mapping[str, str]) -> Iterator[Cluster]:
    """A running server in a directory of its own, which goes with it."""
    directory = Path(tempfile.mkdtemp(prefix="guestd-", dir=parent))
    cluster = Cluster(directory, prefix=prefix(), settings=settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def template(cluster: Server) -> Iterator[str]:
    """The name of a fully migrated database to copy."""
    with database(cluster, "template0") as name:
        create_database(cluster.dsn("postgres"), name)
        migrate(cluster.dsn(name))
        _close(cluster, name)
        yield name


@pytest.fixture
def dsn(cluster: Server, template: str) -> Iterator[str]:
    """The DSN of a migrated database of this test's own."""
    with database(cluster, template) as name:
        yield cluster.dsn(name)


@pytest.fixture
def empty_dsn(cluster: Server) -> Iterator[str]:
    """The DSN of an empty database of this test's own: the extension can be created, and is not."""
    with database(cluster, "template0") as name:
        yield cluster.dsn(name)


def _close(cluster: Server, name: str) -> None:
    """Refuse connections to a template, also of TimescaleDB's scheduler: a single session makes copying it fail."""
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])


# Empty databases are copied from template0: TimescaleDB's workers sometimes connect to template1, and a template
# in use cannot be copied.
@contextmanager
def database(cluster: Server, template: str) -> Iterator[str]:
    name = f"guestd_test_{uuid.uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    # FORCE ends the sessions that a failed test left behind.
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(create)
    try:
        yield name
    finally:
        with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
            connection.execute(drop)
