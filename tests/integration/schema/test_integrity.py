"""Samples live and die with their machine, though no foreign key says so."""

import threading
import uuid
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from tools.bench.integrity_race import LEVELS, MACHINES, race

from gueststore import contract
from gueststore.database import Connection
from gueststore.queries import query
from support.models import FOREIGN_KEYS, REQUIRED
from support.schema import insert, make_machine, rows

NOW = datetime.now(UTC)
SECONDS = 2.0  # the long run is `./dev bench integrity`


def samples(connection: Connection, machine: uuid.UUID) -> int:
    """Rows of a machine in all series together."""
    total = 0
    for table in contract.SERIES:
        count = sql.SQL('SELECT count(*) FROM {} WHERE "machineId" = {}').format(
            sql.Identifier(table.name), sql.Literal(machine)
        )
        total += sum(row[0] for row in connection.execute(count))
    return total


def fill(connection: Connection, machine: uuid.UUID, days: int) -> int:
    """One row a day in each series; returns how many."""
    for table in contract.SERIES:
        values = REQUIRED[table.name](connection) | {"machineId": machine}
        for day in range(days):
            insert(connection, table.name, **values | {"timestamp": NOW - timedelta(days=day)})
    return days * len(contract.SERIES)


@pytest.mark.parametrize("level", LEVELS)
def test_no_row_is_orphaned_or_lost_while_machines_are_deleted(dsn: str, level: str) -> None:
    outcome = race(dsn, level, SECONDS)
    assert outcome.batches > 0
    assert outcome.deletes > 0
    assert (outcome.orphans, outcome.lost, outcome.given_up) == (0, 0, 0)
    if level == "READ COMMITTED":
        assert outcome.orphans_before_sweep == 0


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_delete_from_an_old_snapshot_leaves_a_tombstone_and_the_sweep_what_it_missed(
    dsn: str, connection: Connection, level: str
) -> None:
    """The race, step by step: the writer commits after the deleter's snapshot and before its delete."""
    machine, other = make_machine(connection), make_machine(connection)
    kept = fill(connection, other, 1)
    with psycopg.connect(dsn) as deleter:
        deleter.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        deleter.execute('SELECT count(*) FROM "Machine"')
        with connection.transaction():
            assert connection.execute(query("ingest/lock_machines"), {"ids": [machine]}).fetchall() == [(machine,)]
            missed = fill(connection, machine, 2)
        deleter.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
    assert samples(connection, machine) == missed
    assert rows(connection, 'SELECT "id" FROM "DeletedMachine"') == [(machine,)]
    assert rows(connection, "SELECT guestd_sweep_deleted_machines()") == [(missed,)]
    assert (samples(connection, machine), samples(connection, other)) == (0, kept)
    assert rows(connection, "SELECT guestd_sweep_deleted_machines()") == [(0,)]


def test_a_delete_at_read_committed_needs_no_tombstone(dsn: str, connection: Connection) -> None:
    machine = make_machine(connection)
    with psycopg.connect(dsn) as deleter:
        deleter.execute('SELECT count(*) FROM "Machine"')
        with connection.transaction():
            connection.execute(query("ingest/lock_machines"), {"ids": [machine]})
            fill(connection, machine, 2)
        deleter.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
    assert samples(connection, machine) == 0
    assert rows(connection, 'SELECT count(*) FROM "DeletedMachine"') == [(0,)]


def test_a_machine_in_a_batch_is_not_deleted_until_the_batch_is_stored(dsn: str, connection: Connection) -> None:
    machine = make_machine(connection)
    with psycopg.connect(dsn, autocommit=True) as deleter:
        deleter.execute("SET lock_timeout = '100ms'")
        with connection.transaction():
            connection.execute(query("ingest/lock_machines"), {"ids": [machine]})
            with pytest.raises(psycopg.errors.LockNotAvailable):
                deleter.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
        deleter.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
    with connection.transaction():
        assert connection.execute(query("ingest/lock_machines"), {"ids": [machine]}).fetchall() == []


def test_ordinary_updates_of_a_machine_do_not_wait_for_the_writer(dsn: str, connection: Connection) -> None:
    machine = make_machine(connection)
    with psycopg.connect(dsn, autocommit=True) as platform:
        platform.execute("SET lock_timeout = '100ms'")
        with connection.transaction():
            connection.execute(query("ingest/lock_machines"), {"ids": [machine]})
            platform.execute('UPDATE "Machine" SET "status" = \'off\' WHERE "id" = %s', (machine,))


def test_full_retention_of_many_machines_is_deleted_with_default_settings(connection: Connection) -> None:
    machines = [make_machine(connection) for _ in range(MACHINES)]
    for machine in machines:
        fill(connection, machine, 14)
    ((chunks,),) = rows(connection, "SELECT count(*) FROM show_chunks('\"ProcessSnapshot\"')")
    assert chunks == 14
    connection.execute('DELETE FROM "Machine" WHERE "id" = ANY(%s)', (machines[1:],))
    assert samples(connection, machines[0]) == 14 * len(contract.SERIES)
    assert [samples(connection, machine) for machine in machines[1:]] == [0] * (MACHINES - 1)


def test_truncating_machines_empties_the_series_too(connection: Connection) -> None:
    machine = make_machine(connection)
    fill(connection, machine, 3)
    connection.execute('TRUNCATE "Machine" CASCADE')
    assert samples(connection, machine) == 0


def test_the_platforms_own_role_may_delete_machines_without_rights_on_the_series(connection: Connection) -> None:
    machine = make_machine(connection)
    fill(connection, machine, 1)
    with connection.transaction(force_rollback=True):
        connection.execute("CREATE ROLE guestd_test_platform")
        connection.execute('GRANT SELECT, DELETE ON "Machine" TO guestd_test_platform')
        connection.execute("SET LOCAL ROLE guestd_test_platform")
        connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
        connection.execute("RESET ROLE")
        assert samples(connection, machine) == 0


def test_a_stored_timestamp_is_found_by_one_probe_in_one_chunk(connection: Connection) -> None:
    machine, other = make_machine(connection), make_machine(connection)
    fill(connection, machine, 30)
    connection.execute('ANALYZE "SystemMetrics"')
    at = rows(connection, 'SELECT max("timestamp") FROM "SystemMetrics"')[0][0]
    pairs = {
        "machine_ids": [machine, machine, other],
        "timestamps": [at, at - timedelta(milliseconds=1), at],
    }
    assert connection.execute(query("ingest/read_stored_timestamps"), pairs).fetchall() == [(machine, at)]
    plan = "\n".join(
        row[0] for row in connection.execute(b"EXPLAIN (ANALYZE) " + query("ingest/read_stored_timestamps"), pairs)
    )
    read = [line for line in plan.splitlines() if "_chunk" in line and "never executed" not in line]
    assert len(read) <= 1, plan


def test_chunks_created_ahead_by_two_daemons_while_samples_arrive_do_not_deadlock(
    dsn: str, connection: Connection
) -> None:
    machine = make_machine(connection)
    failures: list[psycopg.Error] = []

    def make_ahead() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                for day in range(10):
                    for table in contract.SERIES:
                        own.execute("SELECT guestd_create_chunk(%s, %s)", (table.name, NOW + timedelta(days=day)))
        except psycopg.Error as exc:
            failures.append(exc)

    daemons = [threading.Thread(target=make_ahead) for _ in range(2)]
    for daemon in daemons:
        daemon.start()
    for day in range(10):
        with connection.transaction():
            connection.execute(query("ingest/lock_machines"), {"ids": [machine]})
            for table in contract.SERIES:
                values = REQUIRED[table.name](connection) | {"machineId": machine}
                insert(connection, table.name, **values | {"timestamp": NOW + timedelta(days=day)})
    for daemon in daemons:
        daemon.join(timeout=60)
    assert failures == []
    assert samples(connection, machine) == 10 * len(contract.SERIES)
    for table in contract.SERIES:
        ((sentinels,),) = connection.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE \"machineId\" = '00000000-0000-0000-0000-000000000000'").format(
                sql.Identifier(table.name)
            )
        ).fetchall()
        assert sentinels == 0


def test_every_table_of_a_machine_without_a_foreign_key_is_among_those_that_its_deletion_empties(
    connection: Connection,
) -> None:
    ((series, rollups),) = rows(connection, "SELECT * FROM guestd_machine_tables()")
    linked = {table for table, column, *_ in rows(connection, FOREIGN_KEYS) if column == "machineId"}
    of_machines = rows(
        connection,
        "SELECT table_name FROM information_schema.columns INNER JOIN information_schema.tables"
        " USING (table_schema, table_name)"
        " WHERE table_schema = 'public' AND column_name = 'machineId' AND table_type = 'BASE TABLE'",
    )
    # Quarantined frames outlive their machine: a frame of an unknown machine is one of them.
    assert {table for (table,) in of_machines} - linked - {"QuarantinedFrame"} == {*series, *rollups}
