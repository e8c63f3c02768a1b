"""A reader asks a streaming replica what it asks the primary, and gets the same."""

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import psycopg
import pytest
import pytest_asyncio
from tools.harness.cluster import Cluster, create_database, prefix
from tools.harness.waiting import eventually

from gueststore import read_api
from gueststore.alarms import read_alarms
from gueststore.migrations import migrate
from support.rollups import roll_up, send
from support.schema import make_machine, rows

NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Pair:
    """A primary with a machine that reported for two hours, and its replica."""

    primary: str
    replica: str
    machine: uuid.UUID


@pytest.fixture
def pair(own_cluster: Cluster) -> Iterator[Pair]:
    create_database(own_cluster.dsn("postgres"), "guestd")
    primary = own_cluster.dsn("guestd")
    migrate(primary)
    directory = Path(tempfile.mkdtemp(prefix="guestd-"))
    replica = Cluster(directory, prefix=prefix())
    try:
        replica.follow(own_cluster.dsn("postgres"))
        with psycopg.connect(primary, autocommit=True) as connection:
            machine = make_machine(connection)
            for minute in range(0, 120, 10):
                send(connection, machine, NOW - timedelta(minutes=minute), Random(minute))
            roll_up(connection)
            ((written,),) = rows(connection, "SELECT pg_current_wal_lsn()::text")
        with psycopg.connect(replica.dsn("guestd"), autocommit=True) as connection:
            replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            eventually(lambda: rows(connection, replayed, written) == [(True,)], "the replica has it all")
        yield Pair(primary, replica.dsn("guestd"), machine)
    finally:
        replica.stop()
        shutil.rmtree(directory)


@pytest_asyncio.fixture
async def readers(pair: Pair) -> AsyncIterator[list[read_api.AsyncConnection]]:
    """Connections of a reader's to both, in that order."""
    async with (
        await psycopg.AsyncConnection.connect(pair.primary, autocommit=True) as primary,
        await psycopg.AsyncConnection.connect(pair.replica, autocommit=True) as replica,
    ):
        for connection in (primary, replica):
            await connection.execute("SET ROLE guestd_reader")
        yield [primary, replica]


@pytest.mark.asyncio
async def test_a_replica_answers_what_its_primary_answers(pair: Pair, readers: list[read_api.AsyncConnection]) -> None:
    window = (NOW - timedelta(hours=3), NOW + timedelta(hours=1))
    answers = [
        (
            await read_api.read_machines(each),
            await read_api.read_series(each, pair.machine, *window),
            await read_api.read_processes(each, pair.machine, *window),
            await read_api.read_top_processes(each, *window),
            await read_api.read_top_processes(each, *window, of=[pair.machine]),
            await read_api.read_fleet(each, *window),
            await read_api.read_ports(each, pair.machine),
            await read_api.read_applications(each, pair.machine),
            await read_api.read_changes(each, pair.machine),
            await read_api.read_machines_without_data(each),
        )
        for each in readers
    ]
    assert answers[0] == answers[1]
    assert answers[0][0][0].at == NOW
    assert sum(point.samples for point in answers[0][1]) == 12
    assert read_alarms(pair.replica) == []
