"""Writers that store samples while machines are deleted under them: does anything stay behind, does anything get lost?

A writer does what the daemon does, at READ COMMITTED: FOR KEY SHARE on the machines of its batch, COPY for those that
exist, commit. The deleter deletes and adds machines at the isolation level in question, from a snapshot that is
already old when it deletes, which is where a lock alone is not enough (docs/decisions/0017).
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import psycopg
from psycopg import sql

from gueststore.database import Connection
from gueststore.queries import query

T = TypeVar("T")

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
MACHINES = 20
PROCESSES = 10
WRITERS = 2

COPY = sql.SQL('COPY "ProcessSnapshot" ({}) FROM STDIN').format(
    sql.SQL(", ").join(
        map(
            sql.Identifier,
            ("machineId", "timestamp", "processId", "name", "cpuUsagePercent", "memoryUsageKB", "status"),
        )
    )
)
INSERT_MACHINE = """
INSERT INTO "Machine" ("id", "name", "internalName", "status", "templateId", "os")
VALUES (%(id)s, 'race', %(id)s::text, 'running', (SELECT "id" FROM "MachineTemplate" LIMIT 1), 'ubuntu')
"""
ORPHANS = """
SELECT count(*) FROM "ProcessSnapshot" AS sample
WHERE NOT EXISTS (SELECT 1 FROM "Machine" AS machine WHERE machine."id" = sample."machineId")
"""
STORED = 'SELECT "machineId", count(*) FROM "ProcessSnapshot" GROUP BY "machineId"'


@dataclass
class Race:
    """What happened. `lost` and `orphans_*` count rows; `retried` transactions that were run again."""

    level: str
    seconds: float
    batches: int = 0
    deletes: int = 0
    retried: int = 0
    given_up: int = 0
    orphans_before_sweep: int = 0
    orphans: int = 0
    lost: int = 0
    committed: list[list[uuid.UUID]] = field(default_factory=list, repr=False)  # the machines of each batch


def race(dsn: str, level: str, seconds: float) -> Race:
    """Run the race in a freshly migrated database and count what is left, before the sweep and after."""
    result = Race(level, seconds)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            'INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES (\'race\', 1, 1, 1)'
        )
        machines = [uuid.uuid4() for _ in range(MACHINES)]
        for machine in machines:
            connection.execute(INSERT_MACHINE, {"id": machine})
        end = time.monotonic() + seconds
        runners = [threading.Thread(target=_write, args=(dsn, machines, n, end, result)) for n in range(WRITERS)]
        runners.append(threading.Thread(target=_delete, args=(dsn, machines, level, end, result)))
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
        result.orphans_before_sweep = _count(connection, ORPHANS)
        connection.execute("SELECT guestd_sweep_deleted_machines()")
        result.orphans = _count(connection, ORPHANS)
        found: dict[uuid.UUID, int] = dict(connection.execute(STORED).fetchall())
        batches = Counter(machine for batch in result.committed for machine in batch)
        alive = [row[0] for row in connection.execute('SELECT "id" FROM "Machine"')]
        result.batches = len(result.committed)
        result.lost = sum(abs(PROCESSES * batches[machine] - found.get(machine, 0)) for machine in alive)
    return result


def _write(dsn: str, machines: list[uuid.UUID], number: int, end: float, result: Race) -> None:
    """Store one batch after another for whatever machines there are."""
    start = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    with psycopg.connect(dsn, autocommit=True) as connection:
        step = 0
        while time.monotonic() < end:
            step += 1
            at = start + timedelta(milliseconds=step * WRITERS + number)
            known = _until_it_goes_through(partial(_store, connection, list(machines), at), result)
            result.committed.append(known or [])


def _store(connection: Connection, machines: list[uuid.UUID], at: datetime) -> list[uuid.UUID]:
    with connection.transaction(), connection.cursor() as cursor:
        known = [row[0] for row in cursor.execute(query("ingest/lock_machines"), {"ids": machines})]
        with cursor.copy(COPY) as copy:
            for machine in known:
                for process in range(PROCESSES):
                    copy.write_row((machine, at, process, "race", 0.0, 1, "running"))
    return known


def _delete(dsn: str, machines: list[uuid.UUID], level: str, end: float, result: Race) -> None:
    """Delete the oldest machine and add a new one, again and again."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < end:
            gone, new = machines[0], uuid.uuid4()
            _until_it_goes_through(partial(_replace, connection, gone, new, level), result)
            machines[:] = [*machines[1:], new]
            result.deletes += 1


def _replace(connection: Connection, gone: uuid.UUID, new: uuid.UUID, level: str) -> None:
    with connection.transaction():
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        # The snapshot is taken here; writers go on for a while before the delete waits for them.
        connection.execute('SELECT count(*), pg_sleep(0.005) FROM "Machine"')
        connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (gone,))
        connection.execute(INSERT_MACHINE, {"id": new})


def _until_it_goes_through(attempt: Callable[[], T], result: Race) -> T | None:
    """Run a transaction again after a deadlock or a serialisation failure, as the daemon does."""
    for _ in range(100):
        try:
            return attempt()
        except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
            result.retried += 1
    result.given_up += 1
    return None


def _count(connection: Connection, select: str) -> int:
    row = connection.execute(select.encode()).fetchone()
    return int(row[0]) if row else 0
