"""The two roles: what the daemon and readers need works as them, and nothing else does."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from gueststore import contract
from gueststore.catalogue import find_drift, load_catalogue
from gueststore.database import Connection
from gueststore.migrations import migrate
from gueststore.queries import query
from gueststore.scripts import load_scripts
from support.models import REQUIRED
from support.schema import insert, make_machine, rows
from support.store import Server

SECRETS = {
    "User": {"password", "token"},
    "MachineConfiguration": {"graphicPassword", "xml"},
    "QuarantinedFrame": {"payload"},
}
NOW = datetime.now(UTC)


@pytest.fixture
def reader(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET ROLE guestd_reader")
        yield connection


@pytest.fixture
def writer(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET ROLE guestd_writer")
        yield connection


def refused(connection: Connection, statement: str) -> bool:
    try:
        connection.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege:
        return True
    return False


def test_a_reader_sees_every_column_but_the_secrets(reader: Connection) -> None:
    for kind, name in load_catalogue():
        table, _, column = name.partition(".")
        if kind == "column":
            hidden = column in SECRETS.get(table, set())
            assert refused(reader, f'SELECT "{column}" FROM "{table}"') == hidden, name


def test_a_reader_cannot_see_secrets_by_any_way_round(connection: Connection, reader: Connection) -> None:
    insert(connection, "User", **REQUIRED["User"](connection))
    for statement in (
        'SELECT * FROM "User"',
        'SELECT "User" FROM "User"',
        'SELECT count(*) FROM "User" WHERE "password" LIKE \'$2b$%\'',
        'SELECT "id" FROM "User" ORDER BY "token"',
        'COPY "User" TO STDOUT',
        'SELECT * FROM "MachineConfiguration"',
    ):
        assert refused(reader, statement), statement


def test_a_reader_writes_nothing_and_calls_nothing(reader: Connection) -> None:
    for kind, name in load_catalogue():
        if kind == "table":
            assert refused(reader, f'DELETE FROM "{name}"'), name
            assert refused(reader, f'INSERT INTO "{name}" DEFAULT VALUES'), name
    assert refused(reader, "SELECT guestd_sweep_deleted_machines()")
    assert refused(reader, "SELECT guestd_enforce_retention('PortUsage')")
    assert refused(reader, "SELECT guestd_roll_up_minutes(1)")
    assert refused(reader, "SELECT guestd_create_chunk('PortUsage', now())")
    assert refused(reader, "SELECT guestd_trim_events(9, 9)")


def test_the_daemons_whole_transaction_works_as_the_writer(connection: Connection, writer: Connection) -> None:
    machine, spool, owner = make_machine(connection), uuid.uuid4(), uuid.uuid4()
    before = rows(connection, 'SELECT "updatedAt" FROM "Machine"')
    ledger = {"spool_id": spool, "lane": 0, "committed_seq": 0, "owner": owner}
    assert writer.execute(query("ingest/insert_ledger"), ledger).fetchall() == [(0,)]
    with writer.transaction(), writer.cursor() as cursor:
        known = cursor.execute(query("ingest/lock_machines"), {"ids": [machine, uuid.uuid4()]}).fetchall()
        cursor.execute(query("ingest/lock_agents"), {"machine_ids": [machine], "dialects": ["guestd"]})
        cursor.execute(query("ingest/read_stored_timestamps"), {"machine_ids": [machine], "timestamps": [NOW]})
        digests = {"machine_ids": [machine], "digests": [1], "earliest": NOW, "latest": NOW}
        assert cursor.execute(query("ingest/read_stored_frames"), digests).fetchall() == []
        cursor.execute(query("ingest/create_incoming"))
        for table in contract.TABLES:
            names = sql.SQL(", ").join(sql.Identifier(name) for name in table.types)
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)) as copy:
                copy.write_row([a_value(machine, name, kind) for name, kind in table.types.items()])
        cursor.execute(query("ingest/merge_applications"))
        cursor.execute(query("ingest/lock_services"))
        cursor.execute(query("ingest/merge_services"), {"history_per_day": 1000})
        frame = {"machine_id": machine, "received_at": NOW, "spool_id": spool, "seq": 1, "reason": "json"}
        rest = {"detail": "", "refusals": Jsonb([]), "stored": False, "payload": b"", "digest": 1}
        cursor.execute(query("ingest/insert_quarantined_frame"), frame | rest)
        moved = cursor.execute(
            query("ingest/advance_ledger"),
            {
                "spool_id": spool,
                "lane": 0,
                "expected_seq": 0,
                "committed_seq": 1,
                "expected_owner": owner,
                "owner": owner,
            },
        ).fetchall()
    assert (known, moved) == ([(machine,)], [(1,)])
    assert writer.execute(query("ingest/read_ledger"), {"spool_id": spool, "lane": 0}).fetchall() == [(1, owner)]
    assert writer.execute(query("machines/read_machines")).fetchall() == rows(
        connection, 'SELECT "id", "internalName", "commandLines", "isCollected" FROM "Machine"'
    )
    assert writer.execute(query("schema/read_version")).fetchone() == (contract.SCHEMA_VERSION, 1)
    assert rows(connection, 'SELECT count(*) FROM "ProcessSnapshot"') == [(1,)]
    assert rows(connection, 'SELECT count(*) FROM "ApplicationUsage"') == [(1,)]
    assert rows(connection, 'SELECT "updatedAt" FROM "Machine"') == before


def a_value(machine: uuid.UUID, name: str, kind: str) -> object:
    """Some value of a type; the machine where one is meant."""
    if name == "machineId":
        return machine
    if name == "cpuCoresUsage":
        return Jsonb([1])
    values: dict[str, object] = {
        "uuid": uuid.uuid4(),
        "timestamptz": NOW,
        "float8": 1.0,
        "int8": 1,
        "int4": 1,
        "text": "x",
        "bool": True,
        "jsonb": Jsonb({}),
        "bytea": b"x",
    }
    return values[kind]


def test_the_writer_can_do_nothing_beyond_its_work(connection: Connection, writer: Connection) -> None:
    machine = make_machine(connection)
    for statement in (
        'DELETE FROM "Machine"',
        'UPDATE "Machine" SET "name" = \'x\'',
        'SELECT "email" FROM "User"',
        'UPDATE "SystemMetrics" SET "uptime" = 0',
        'DELETE FROM "SystemMetrics"',
        'TRUNCATE "SystemMetrics"',
        'SELECT * FROM "MachineConfiguration"',
        'DELETE FROM "ServiceStateHistory"',
        'DELETE FROM "IngestLedger"',
        "SELECT drop_chunks('\"SystemMetrics\"', now())",
        'INSERT INTO "DeletedMachine" VALUES (gen_random_uuid())',
        "CREATE TABLE mine (id integer)",
    ):
        assert refused(writer, statement), statement
    # What it may do to Machine leaves no trace.
    writer.execute('UPDATE "Machine" SET "updatedAt" = \'2000-01-01Z\' WHERE "id" = %s', (machine,))
    assert rows(connection, 'SELECT "updatedAt" > now() - interval \'1 hour\' FROM "Machine"') == [(True,)]


CHUNKS = "SELECT count(*) FROM show_chunks(quote_ident(%s)::regclass)"


@pytest.mark.parametrize("table", [table.name for table in contract.SERIES])
def test_the_writer_creates_chunks_ahead_and_drops_old_ones(
    connection: Connection, writer: Connection, table: str
) -> None:
    for day in (0, 10, 20):
        writer.execute("SELECT guestd_create_chunk(%s, %s)", (table, NOW + timedelta(days=day)))
        writer.execute("SELECT guestd_create_chunk(%s, %s)", (table, NOW + timedelta(days=day)))
    assert rows(connection, CHUNKS, table) == [(3,)]
    assert connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone() == (0,)
    for day in (300, 400):
        old = REQUIRED[table](connection) | {"timestamp": NOW - timedelta(days=day)}
        insert(connection, table, **old)
    for step in ("minutes", "hours"):
        writer.execute(f"SELECT guestd_roll_up_{step}(100)".encode())
    assert writer.execute("SELECT guestd_enforce_retention(%s)", (table,)).fetchone() == (2,)
    assert rows(connection, CHUNKS, table) == [(3,)]


def test_a_wrong_argument_can_neither_create_nor_drop_chunks(writer: Connection) -> None:
    for statement in (
        "SELECT guestd_create_chunk('PortUsage', now() + interval '31 days')",
        "SELECT guestd_create_chunk('PortUsage', 'infinity')",
        "SELECT guestd_create_chunk('PortUsage', NULL)",
        "SELECT guestd_create_chunk('Machine', now())",
        "SELECT guestd_create_chunk(NULL, now())",
        "SELECT guestd_enforce_retention('User')",
        "SELECT guestd_enforce_retention('x\"; DROP TABLE \"User')",
        "SELECT guestd_enforce_retention(NULL)",
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            writer.execute(statement.encode())


def test_functions_with_the_owners_rights_ignore_the_callers_search_path(
    connection: Connection, writer: Connection
) -> None:
    unpinned = rows(
        connection,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'guestd%%'"
        " AND prosqlbody IS NULL AND NOT COALESCE(proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], FALSE) AND %s",
        True,
    )
    assert unpinned == []
    writer.execute('CREATE TEMPORARY TABLE "PortUsage" (note text)')
    writer.execute("SET search_path = pg_temp")
    writer.execute("SELECT public.guestd_create_chunk('PortUsage', now())")
    assert rows(connection, CHUNKS, "PortUsage") == [(1,)]


def test_databases_of_one_server_can_be_migrated_at_the_same_moment(cluster: Server) -> None:
    """Roles belong to the server: the migrations of four databases make them side by side."""
    names = [f"guestd_test_{uuid.uuid4().hex}" for _ in range(4)]
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as server:
        for name in names:
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda name: migrate(cluster.dsn(name)), names))
            assert [find_drift(cluster.dsn(name)) for name in names] == [[], [], [], []]
        finally:
            for name in names:
                server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_role_that_another_transaction_makes_meanwhile_is_as_good_as_ours(cluster: Server) -> None:
    """The second transaction does not see the first one's role, waits for it, and finds the name taken."""
    (roles,) = [script.body for script in load_scripts().repeatables if script.name == "05_roles"]
    role = f"guestd_test_{uuid.uuid4().hex}"
    make = roles.replace("guestd_writer", role).encode()
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as server:
        try:
            with (
                ThreadPoolExecutor(1) as pool,
                psycopg.connect(cluster.dsn("postgres"), autocommit=True) as second,
                psycopg.connect(cluster.dsn("postgres")) as first,
            ):
                first.execute(make)
                waiting = pool.submit(second.execute, make)
                blocked = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
                deadline = time.monotonic() + 30
                while rows(server, blocked, second.info.backend_pid) != [(1,)] and time.monotonic() < deadline:
                    assert not waiting.done()
                first.commit()
                waiting.result(timeout=30)
            assert rows(server, "SELECT count(*) FROM pg_roles WHERE rolname = %s", role) == [(1,)]
        finally:
            server.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def test_a_migrator_needs_no_superuser(cluster: Server) -> None:
    """A login that owns its database and may make roles can do it all, once the extension is there."""
    name = f"guestd_test_{uuid.uuid4().hex}"
    role, database = sql.Identifier(f"owner_{name}"), sql.Identifier(name)
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as server:
        server.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD 'only-for-this-test'").format(role))
        server.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(database, role))
        try:
            with psycopg.connect(cluster.dsn(name), autocommit=True) as inside:
                inside.execute("CREATE EXTENSION timescaledb")
            owner = make_conninfo(cluster.dsn(name), user=f"owner_{name}", password="only-for-this-test")
            migrate(owner)
            assert find_drift(owner) == []
            with psycopg.connect(owner, autocommit=True) as connection:
                machine = make_machine(connection)
                connection.execute("SELECT guestd_create_chunk('PortUsage', now())")
                connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
                connection.execute('TRUNCATE "Machine" CASCADE')
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
            server.execute(sql.SQL("DROP ROLE {}").format(role))
