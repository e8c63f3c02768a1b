"""What goes wrong with a store as it ages is named, by the command and by guestd."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from fix_models import REQUIRED
from fix_schema import insert
from gueststore.alarms import Alarm, alarms
from gueststore.database import Connection

NOW = datetime.now(UTC)
FAR = {"timestamp": NOW + timedelta(days=60)}
LONG_AGO = {"timestamp": NOW - timedelta(days=60)}


def test_a_fresh_store_has_no_alarm(dsn: str) -> None:
    assert alarms(dsn) == []


# What was done to the store, and the kind and beginning of its alarm.
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
    assert any(each.kind == named.kind and each.sentence.startswith(named.sentence) for each in alarms(dsn))


@pytest.mark.parametrize(("at", "kind"), [(FAR, "future"), (LONG_AGO, "past")])
def test_chunks_far_from_now_are_an_alarm(dsn: str, connection: Connection, at: dict[str, datetime], kind: str) -> None:
    insert(connection, "PortUsage", **REQUIRED["PortUsage"](connection) | at)
    (found,) = alarms(dsn)
    assert found.kind == kind
    assert found.sentence.startswith("1 chunks of PortUsage ")


def test_roll_ups_that_nobody_does_are_an_alarm(dsn: str, connection: Connection) -> None:
    old = {"unit": "minute", "bucket": NOW - timedelta(hours=5)}
    insert(connection, "RollupPending", **REQUIRED["RollupPending"](connection) | old)
    assert alarms(dsn) == []  # the turn of what is late may come yet
    connection.execute("SET session_replication_role = replica")
    connection.execute("""UPDATE "RollupState" SET "updatedAt" = now() - INTERVAL '4 hours'""")
    (found,) = alarms(dsn)
    assert (found.kind, found.sentence[:19]) == ("rollup", "roll-ups are behind")


def test_the_command_prints_alarms_and_fails(dsn: str, connection: Connection) -> None:
    connection.execute(DAMAGES[1][0].encode())
    done = subprocess.run(
        [sys.executable, "-m", "gueststore", "check", "--dsn", dsn], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "hypertable PortUsage has no row in RetentionSetting and grows for ever\n" in done.stdout
