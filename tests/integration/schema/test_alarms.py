"""The problems of a store that grow with age are alarms of the command and of guestd."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from tools.harness.waiting import eventually

from gueststore.alarms import Alarm, read_alarms
from gueststore.database import Connection
from gueststore.queries import query
from support.models import REQUIRED
from support.schema import insert, rows

NOW = datetime.now(UTC)
FAR = {"timestamp": NOW + timedelta(days=60)}
LONG_AGO = {"timestamp": NOW - timedelta(days=60)}


def test_a_fresh_store_has_no_alarm(dsn: str) -> None:
    assert read_alarms(dsn) == []


# The damage, and the kind and beginning of its alarm.
DAMAGES = [
    (
        'ALTER TABLE "Node" ADD CONSTRAINT "Node_cores_check" CHECK ("cores" > 0) NOT VALID',
        Alarm("unvalidated", 'constraint Node_cores_check of "Node" was never'),
    ),
    (
        """DELETE FROM "RetentionSetting" WHERE "relation" = 'PortUsage'""",
        Alarm("retention", "hypertable PortUsage has no row"),
    ),
    ('DROP INDEX "Disk_nodeId_idx"', Alarm("drift", "index Disk.Disk_nodeId_idx is missing")),
    ('UPDATE "SchemaMigration" SET "checksum" = \'x\' WHERE "number" = 1', Alarm("migration", "migration 0001")),
    ('DELETE FROM "SchemaRepeatable" WHERE "name" = \'30_views\'', Alarm("migration", "30_views has not run")),
]


@pytest.mark.parametrize(("damage", "named"), DAMAGES, ids=[named.sentence for _, named in DAMAGES])
def test_each_kind_of_damage_is_an_alarm(dsn: str, connection: Connection, damage: str, named: Alarm) -> None:
    connection.execute(damage.encode())
    assert any(each.kind == named.kind and each.sentence.startswith(named.sentence) for each in read_alarms(dsn))


def test_every_series_and_roll_up_without_a_retention_is_an_alarm(dsn: str, connection: Connection) -> None:
    settings = {str(each) for (each,) in rows(connection, 'DELETE FROM "RetentionSetting" RETURNING "relation"')}
    tables = settings - {"ApplicationUsage", "QuarantinedFrame"}  # these two have no chunks
    alarms = {each.sentence.split()[1] for each in read_alarms(dsn) if each.kind == "retention"}
    assert alarms == tables


@pytest.mark.parametrize(("at", "kind"), [(FAR, "future"), (LONG_AGO, "past")])
def test_chunks_far_from_now_are_an_alarm(dsn: str, connection: Connection, at: dict[str, datetime], kind: str) -> None:
    insert(connection, "PortUsage", **REQUIRED["PortUsage"](connection) | at)
    (found,) = read_alarms(dsn)
    assert found.kind == kind
    assert found.sentence.startswith("1 chunks of PortUsage ")


def test_roll_ups_that_nobody_runs_are_an_alarm(dsn: str, connection: Connection) -> None:
    old = {"unit": "minute", "bucket": NOW - timedelta(hours=5)}
    insert(connection, "RollupPending", **REQUIRED["RollupPending"](connection) | old)
    assert read_alarms(dsn) == []  # a late sample may still be rolled up soon
    connection.execute("SET session_replication_role = replica")
    connection.execute("""UPDATE "RollupState" SET "updatedAt" = now() - INTERVAL '4 hours'""")
    (found,) = read_alarms(dsn)
    assert (found.kind, found.sentence[:19]) == ("rollup", "roll-ups are behind")


def test_the_command_prints_alarms_and_fails(dsn: str, connection: Connection) -> None:
    connection.execute(DAMAGES[1][0].encode())
    done = subprocess.run(
        [sys.executable, "-m", "gueststore", "check", "--dsn", dsn], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        "hypertable PortUsage has no row in RetentionSetting and grows without limit: insert one with its keepDays\n"
        in done.stdout
    )
    command = [sys.executable, "-m", "gueststore", "check", "--dsn", dsn, "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert [each["text"] for each in facts] == done.stdout.splitlines()[:-1]
    assert all(each["kind"] for each in facts)


def test_a_table_of_more_dead_rows_than_rows_is_an_alarm(dsn: str, connection: Connection) -> None:
    connection.execute('ALTER TABLE "DeletedMachine" SET (autovacuum_enabled = false)')
    connection.execute('INSERT INTO "DeletedMachine" ("id") SELECT gen_random_uuid() FROM generate_series(1, 110000)')
    connection.execute('DELETE FROM "DeletedMachine"')
    connection.execute("SELECT pg_stat_force_next_flush()")
    eventually(lambda: [each.kind for each in read_alarms(dsn)] == ["bloat"], "the dead rows are counted")
    (found,) = read_alarms(dsn)
    assert found.sentence == (
        "DeletedMachine has 110000 dead rows beside 0: autovacuum does not keep up, VACUUM the table"
    )


def test_queries_that_are_slow_on_average_are_an_alarm_except_roll_ups(dsn: str, connection: Connection) -> None:
    if rows(connection, "SHOW shared_preload_libraries") == [("timescaledb",)]:
        pytest.skip("this server does not load pg_stat_statements")
    assert not [each for each in read_alarms(dsn, slow_query_ms=10) if each.kind == "slow"]
    connection.execute("CREATE EXTENSION pg_stat_statements")
    for _ in range(11):
        connection.execute("SELECT pg_sleep(0.02)")
        connection.execute("SELECT pg_sleep(0.02), guestd_roll_up_minutes(1)")
    (found,) = [each for each in read_alarms(dsn, slow_query_ms=10) if each.kind == "slow"]
    assert found.sentence.endswith(" ms on average over 11 calls: SELECT pg_sleep($1)")
    assert not [each for each in read_alarms(dsn) if each.kind == "slow"]


def test_jobs_that_fail_are_an_alarm_where_jobs_are_ours(connection: Connection) -> None:
    connection.execute("""
        INSERT INTO _timescaledb_internal.bgw_job_stat_history
            (job_id, pid, succeeded, execution_start, execution_finish, data)
        VALUES (3, 1, FALSE, now(), now(), '{"error_data": {"message": "no space left"},
            "job": {"proc_schema": "_timescaledb_functions", "proc_name": "policy_compression"}}')""")
    assert not connection.execute(query("schema/read_alarms")).fetchall()
    # The Apache edition has no jobs of ours: run the query for the other edition on an inserted failure.
    elsewhere = query("schema/read_alarms").decode().replace("= 'timescale'", "IS NOT NULL")
    found = connection.execute(elsewhere.encode()).fetchall()
    assert {kind for kind, _ in found} == {"job"}
    (ours,) = [sentence for _, sentence in found if sentence.startswith("job 3 (policy_compression) ")]
    assert ours.endswith(" in a day: no space left")
