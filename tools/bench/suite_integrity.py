"""./dev bench integrity: what it costs that every sample refers to an existing machine, and whether one ever does not.

On one private server (fsync on):

1. cost: batches of MACHINES x PROCESSES rows of ProcessSnapshot, each in a transaction of its own, with no check, with
   the daemon's FOR KEY SHARE, and into the same hypertable with a real foreign key; in turns, medians;
2. delete: machines with a full retention of 14 daily chunks, by our trigger and by the foreign key's cascade;
3. race: writers against a deleter at each isolation level (tools/bench/integrity_race.py).
"""

import argparse
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from tools.bench.integrity_race import INSERT_MACHINE, LEVELS, race
from tools.bench.server import migrated_database, own_server
from tools.bench.suite import run

from gueststore.database import Connection
from gueststore.queries import query

DAYS = 14
COLUMNS = ("machineId", "timestamp", "processId", "name", "commandLine", "cpuUsagePercent", "memoryUsageKB", "status")
TYPES = ("uuid", "timestamptz", "int4", "text", "text", "float8", "int8", "text")
COMMAND_LINE = "/usr/lib/program --with=some --options=that-are --as-long-as=they-are --in-real-life"

FOREIGN_KEY_TWIN = """
CREATE TABLE "Twin" (LIKE "ProcessSnapshot" INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
ALTER TABLE "Twin" ADD PRIMARY KEY ("machineId", "timestamp", "processId");
SELECT create_hypertable('"Twin"', by_range('timestamp', INTERVAL '1 day'), create_default_indexes => FALSE);
ALTER TABLE "Twin" ADD FOREIGN KEY ("machineId") REFERENCES "Machine" ("id") ON DELETE CASCADE
"""
FILL = """
INSERT INTO {} ("machineId", "timestamp", "processId", "name", "cpuUsagePercent", "memoryUsageKB", "status")
SELECT machine."id", now() - day * INTERVAL '1 day', process, 'full', 0, 1, 'running'
FROM "Machine" AS machine, generate_series(0, %(days)s - 1) AS day, generate_series(1, %(rows)s) AS process
WHERE machine."id" = ANY(%(ids)s)
"""


def main() -> None:
    """Measure all three."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machines", type=int, default=100, help="machines in each batch")
    parser.add_argument("--processes", type=int, default=100, help="processes of each machine")
    parser.add_argument("--batches", type=int, default=40, help="batches of each kind")
    parser.add_argument("--seconds", type=float, default=20, help="how long each race runs")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with own_server() as (cluster, _):
        return {
            "batch_ms": _costs(migrated_database(cluster, "costs"), arguments),
            "delete_ms": _deletes(migrated_database(cluster, "deletes")),
            "race": [
                _raced(migrated_database(cluster, f"race{number}"), number, arguments) for number in range(len(LEVELS))
            ],
        }


def _costs(dsn: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of a batch, by how the machines are checked."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        machines = _machines(connection, arguments.machines)
        connection.execute(FOREIGN_KEY_TWIN.encode())
        kinds: dict[str, Callable[[datetime], None]] = {
            "no check": lambda at: _copy(connection, "ProcessSnapshot", machines, arguments.processes, at),
            "key share": lambda at: _locked_copy(connection, machines, arguments.processes, at),
            "foreign key": lambda at: _copy(connection, "Twin", machines, arguments.processes, at),
        }
        took_ms: dict[str, list[float]] = {kind: [] for kind in kinds}
        at = datetime.now(UTC).replace(hour=1)
        for batch in range(arguments.batches + 2):
            for kind, store in kinds.items():
                at += timedelta(seconds=1)
                started = time.perf_counter()
                store(at)
                if batch >= 2:  # the first ones make the chunks
                    took_ms[kind].append((time.perf_counter() - started) * 1000)
    medians = {kind: statistics.median(values) for kind, values in took_ms.items()}
    print(f"\n{'batch of ' + str(arguments.machines * arguments.processes):<24} {'median ms':>10} {'to no check':>12}")
    for kind, median in medians.items():
        print(f"{kind:<24} {median:10.1f} {median / medians['no check']:12.2f}")
    return medians


def _machines(connection: Connection, count: int) -> list[uuid.UUID]:
    connection.execute('INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES (\'bench\', 1, 1, 1)')
    machines = [uuid.uuid4() for _ in range(count)]
    for machine in machines:
        connection.execute(INSERT_MACHINE, {"id": machine})
    return machines


def _copy(connection: Connection, table: str, machines: list[uuid.UUID], processes: int, at: datetime) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    )
    with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(TYPES)
        for machine in machines:
            for process in range(processes):
                copy.write_row((machine, at, process, "bench", COMMAND_LINE, 0.5, 4096, "running"))


def _locked_copy(connection: Connection, machines: list[uuid.UUID], processes: int, at: datetime) -> None:
    with connection.transaction():
        connection.execute(query("ingest/lock_machines"), {"ids": machines}).fetchall()
        _copy(connection, "ProcessSnapshot", machines, processes, at)


def _deletes(dsn: str) -> dict[str, float]:
    """Median milliseconds to delete one machine with 100,800 rows in 14 daily chunks."""
    took_ms: dict[str, list[float]] = {"trigger": [], "foreign key": []}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(FOREIGN_KEY_TWIN.encode())
        owned, referred = _machines(connection, 5), _machines(connection, 5)
        for table, machines in (("ProcessSnapshot", owned), ("Twin", referred)):
            fill = sql.SQL(FILL).format(sql.Identifier(table))
            connection.execute(fill, {"days": DAYS, "rows": 7200, "ids": machines})
        connection.execute("CHECKPOINT")
        for pair in zip(owned, referred, strict=True):
            for kind, machine in zip(took_ms, pair, strict=True):
                started = time.perf_counter()
                connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
                took_ms[kind].append((time.perf_counter() - started) * 1000)
    medians = {kind: statistics.median(values) for kind, values in took_ms.items()}
    print(f"\n{f'delete, {DAYS} chunks':<24} {'median ms':>10}")
    for kind, median in medians.items():
        print(f"{kind:<24} {median:10.1f}")
    return medians


def _raced(dsn: str, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    outcome = race(dsn, LEVELS[number], arguments.seconds)
    if number == 0:
        heads = ("batches", "deletes", "retried", "given up", "orphans", "after sweep", "lost")
        print(f"\n{f'race of {arguments.seconds:.0f} s':<24}" + "".join(f"{head:>12}" for head in heads))
    values = (outcome.batches, outcome.deletes, outcome.retried, outcome.given_up, outcome.orphans_before_sweep)
    print(f"{outcome.level:<24}" + "".join(f"{value:>12}" for value in (*values, outcome.orphans, outcome.lost)))
    figures = asdict(outcome)
    del figures["committed"]
    return figures


if __name__ == "__main__":
    main()
