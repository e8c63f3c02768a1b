"""A dump of a store, restored into an empty TimescaleDB as docs/operations.md says, is the store."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from psycopg import sql
from tools.harness.cluster import prefix, programs_in

from gueststore import contract
from gueststore.catalogue import find_drift
from gueststore.database import Connection
from support.models import REQUIRED
from support.rollups import roll_up
from support.schema import insert, make_machine

NOW = datetime.now(UTC)


def counts(connection: Connection) -> dict[str, int]:
    tables = [*(table.name for table in contract.SERIES), "Machine", "SystemMetricsMinute", "RetentionSetting"]
    found = {}
    for table in tables:
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
        assert row is not None
        found[table] = int(row[0])
    return found


def test_a_dump_is_restored_with_its_hypertables(
    dsn: str, empty_dsn: str, connection: Connection, tmp_path: Path
) -> None:
    machine = make_machine(connection)
    for day in range(3):
        for table in contract.SERIES:
            at = {"machineId": machine, "timestamp": NOW - timedelta(days=day, hours=3)}
            insert(connection, table.name, **REQUIRED[table.name](connection) | at)
    roll_up(connection)
    dump = tmp_path / "guestd.dump"
    programs = programs_in(prefix())
    subprocess.run(
        [programs / "pg_dump", "--format=custom", f"--file={dump}", dsn], check=True, capture_output=True, text=True
    )
    with psycopg.connect(empty_dsn, autocommit=True) as restored:
        restored.execute("CREATE EXTENSION timescaledb")
        restored.execute("SELECT timescaledb_pre_restore()")
    done = subprocess.run(
        [programs / "pg_restore", "--no-owner", f"--dbname={empty_dsn}", dump],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(empty_dsn, autocommit=True) as restored:
        restored.execute("SELECT timescaledb_post_restore()")
        assert counts(restored) == counts(connection)
        assert find_drift(empty_dsn) == []
        # It goes on: a new sample makes a chunk and waits to be rolled up, and a machine takes its samples with it.
        ahead = {"machineId": machine, "timestamp": NOW + timedelta(days=20)}
        insert(restored, "SystemMetrics", **REQUIRED["SystemMetrics"](restored) | ahead)
        assert restored.execute('SELECT count(*) FROM "RollupPending"').fetchone() == (1,)
        restored.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
        assert restored.execute(
            'SELECT count(*) FROM "ProcessSnapshot" WHERE "machineId" = %s', (machine,)
        ).fetchone() == (0,)
