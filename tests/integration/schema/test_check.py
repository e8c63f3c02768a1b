"""gueststore check: clean after every way to the current schema, and able to name damage of every kind."""

import subprocess
import sys
from dataclasses import replace

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from gueststore.catalogue import dumps, find_differences, find_drift, load_catalogue, loads, read_catalogue
from gueststore.database import Connection
from gueststore.migrations import migrate
from gueststore.scripts import Migration, load_scripts
from support.schema import rows

# (damage, what must be named)
DAMAGES = [
    ('ALTER TABLE "ApplicationUsage" DROP COLUMN "fileSize"', "column ApplicationUsage.fileSize is missing"),
    ('ALTER TABLE "Node" ADD COLUMN "colour" text', "column Node.colour should not be there"),
    ('ALTER TABLE "Node" ALTER COLUMN "ram" TYPE bigint', "column Node.ram is `bigint NOT NULL`"),
    ('ALTER TABLE "Node" ALTER COLUMN "cores" DROP NOT NULL', "column Node.cores is `integer`"),
    ('ALTER TABLE "NWFilter" ALTER COLUMN "priority" SET DEFAULT 1', "column NWFilter.priority is"),
    ('DROP TABLE "Notification"', "table Notification is missing"),
    ('DROP INDEX "FWRule_nwFilterId_idx"', "index FWRule.FWRule_nwFilterId_idx is missing"),
    ('CREATE INDEX "slow" ON "PortUsage" ("port")', "index PortUsage.slow should not be there"),
    (
        'ALTER TABLE "Machine" DROP CONSTRAINT "Machine_internalName_key"',
        "constraint Machine.Machine_internalName_key is missing",
    ),
    (
        'ALTER TABLE "FWRule" DROP CONSTRAINT "FWRule_action_known_to_libvirt_check"',
        "constraint FWRule.FWRule_action_known_to_libvirt_check is missing",
    ),
    (
        'ALTER TABLE "Disk" DROP CONSTRAINT "Disk_nodeId_fkey", ADD CONSTRAINT "Disk_nodeId_fkey" UNIQUE ("nodeId")',
        "constraint Disk.Disk_nodeId_fkey is",
    ),
    ('DROP TRIGGER "Machine_delete_samples" ON "Machine"', "trigger Machine.Machine_delete_samples is missing"),
    ('ALTER TABLE "Machine" DISABLE TRIGGER "Machine_announce"', "trigger Machine.Machine_announce is"),
    ('COMMENT ON COLUMN "Machine"."ramGB" IS \'MB\'', "comment Machine.ramGB is `MB`"),
    ('COMMENT ON TABLE "Machine" IS NULL', "comment Machine is missing"),
    (
        'COMMENT ON CONSTRAINT "VmPort_protocol_tcp_or_udp_check" ON "VmPort" IS NULL',
        "constraint comment VmPort.VmPort_protocol_tcp_or_udp_check is missing",
    ),
    (
        "SELECT set_chunk_time_interval('\"PortUsage\"', INTERVAL '1 hour')",
        "hypertable PortUsage is `timestamp in chunks of 01:00:00`",
    ),
    (
        'DROP TABLE "PortUsage" CASCADE; CREATE TABLE "PortUsage" ("machineId" uuid)',
        "hypertable PortUsage is missing",
    ),
    ('REVOKE INSERT ON "PortUsage" FROM guestd_writer', "privilege guestd_writer on PortUsage is `SELECT`"),
    ('GRANT SELECT ("password") ON "User" TO guestd_reader', "privilege guestd_reader on User.password should not"),
    ('GRANT SELECT ON "User" TO public', "privilege public on User should not be there"),
    (
        "GRANT EXECUTE ON FUNCTION guestd_enforce_retention TO public",
        "privilege public on guestd_enforce_retention(pruned",
    ),
    (
        "CREATE OR REPLACE FUNCTION guestd_sweep_deleted_machines() RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'",
        "function guestd_sweep_deleted_machines() is",
    ),
    ("ALTER FUNCTION guestd_delete_samples() SECURITY INVOKER", "function guestd_delete_samples() is"),
    ('DROP VIEW "ActiveUser"; CREATE VIEW "ActiveUser" AS SELECT "id" FROM "User"', "view ActiveUser is"),
]


def test_a_migrated_database_has_no_drift(dsn: str) -> None:
    assert find_drift(dsn) == []


@pytest.mark.parametrize("migration", load_scripts().migrations[:-1], ids=str)
def test_a_database_migrated_from_an_earlier_schema_has_no_drift(empty_dsn: str, migration: Migration) -> None:
    earlier = replace(load_scripts(), migrations=load_scripts().migrations[: migration.number], repeatables=())
    migrate(empty_dsn, scripts=earlier)
    assert any("is missing" in difference for difference in find_drift(empty_dsn))
    migrate(empty_dsn)
    assert find_drift(empty_dsn) == []


def test_each_kind_of_damage_is_named(connection: Connection) -> None:
    assert len(DAMAGES) >= 15
    for damage, named in DAMAGES:
        with connection.transaction(force_rollback=True):
            connection.execute(damage.encode())
            found = find_differences(load_catalogue(), read_catalogue(connection))
        assert any(difference.startswith(named) for difference in found), (damage, found)
    assert find_differences(load_catalogue(), read_catalogue(connection)) == []


def test_an_index_that_was_never_finished_is_named(connection: Connection) -> None:
    connection.execute('DROP INDEX "Disk_nodeId_idx"')
    connection.execute('CREATE INDEX CONCURRENTLY "Disk_nodeId_idx" ON "Disk" ("nodeId")')
    connection.execute("UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = '\"Disk_nodeId_idx\"'::regclass")
    (found,) = find_differences(load_catalogue(), read_catalogue(connection))
    assert found.startswith("index Disk.Disk_nodeId_idx is")
    assert "INVALID" in found


def test_tables_of_other_people_are_not_drift(connection: Connection) -> None:
    connection.execute("CREATE TABLE grafana (id integer PRIMARY KEY, note text DEFAULT 'x')")
    connection.execute("CREATE VIEW mine AS SELECT id FROM grafana")
    assert find_differences(load_catalogue(), read_catalogue(connection)) == []


def test_a_catalogue_survives_writing_and_reading() -> None:
    assert loads(dumps(load_catalogue())) == load_catalogue()
    assert list(loads(dumps(load_catalogue()))) == list(load_catalogue())


def test_every_table_and_column_has_a_comment() -> None:
    described = {name for kind, name in load_catalogue() if kind == "comment"}
    assert {name for kind, name in load_catalogue() if kind in {"table", "view", "column"}} - described == set()


def test_the_command_names_the_drift_and_fails(dsn: str) -> None:
    command = [sys.executable, "-m", "gueststore", "check", "--dsn", dsn]
    clean = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (clean.returncode, clean.stdout) == (0, "the schema is as the migrations make it\n")
    with psycopg.connect(dsn) as connection:
        connection.execute('DROP TABLE "Notification"')
    damaged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert damaged.returncode == 1
    assert "table Notification is missing\n" in damaged.stdout
    with psycopg.connect(dsn) as connection:
        assert rows(connection, "SELECT to_regclass('\"Notification\"')") == [(None,)]


def test_a_database_that_was_never_migrated_is_one_sentence_and_no_list(empty_dsn: str) -> None:
    command = [sys.executable, "-m", "gueststore", "check", "--dsn", empty_dsn]
    empty = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (empty.returncode, empty.stdout, empty.stderr.count("\n")) == (1, "", 1)
    assert "gueststore migrate" in empty.stderr


def test_a_login_without_rights_is_refused_in_one_sentence(dsn: str) -> None:
    powerless = make_conninfo(dsn, options="-c role=guestd_reader")
    command = [sys.executable, "-m", "gueststore", "migrate", "--dsn", powerless]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "bootstrap failed" in refused.stderr
