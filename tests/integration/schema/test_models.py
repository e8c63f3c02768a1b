"""Every model: created with its defaults, read, updated; every unique, cascade, SET NULL and RESTRICT."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from gueststore.catalogue import load_catalogue
from gueststore.constraint_messages import explain_refusal
from gueststore.database import Connection
from support.models import FOREIGN_KEYS, REQUIRED, Row, nw_filter
from support.schema import insert, make_machine, make_user, rows

BOOKS_OF_MIGRATIONS = {"SchemaMigration", "SchemaRepeatable"}


def keys(kind: str) -> Iterator[tuple[str, str, list[str]]]:
    """(table, constraint, columns) of every PRIMARY KEY or UNIQUE of a model."""
    for (found, name), definition in load_catalogue().items():
        table, _, constraint = name.partition(".")
        if found == "constraint" and definition.startswith(kind) and table not in BOOKS_OF_MIGRATIONS:
            columns = definition.partition("(")[2].rstrip(")").replace('"', "")
            yield table, constraint, columns.split(", ")


def where(table: str, row: Row, columns: list[str]) -> sql.Composed:
    """`table WHERE ...` that finds the row by these columns."""
    conditions = [sql.SQL("{} = {}").format(sql.Identifier(c), sql.Literal(row[c])) for c in columns]
    name = sql.Identifier(table) if table else sql.SQL("")
    return sql.SQL("{} WHERE {}").format(name, sql.SQL(" AND ").join(conditions))


def test_every_model_is_exercised_here() -> None:
    assert set(REQUIRED) == {name for kind, name in load_catalogue() if kind == "table"} - BOOKS_OF_MIGRATIONS
    assert len(REQUIRED) >= 22


def test_a_row_is_created_read_and_updated(connection: Connection) -> None:
    for table, _constraint, key in keys("PRIMARY KEY"):
        row = insert(connection, table, **REQUIRED[table](connection))
        assert connection.execute(sql.SQL("SELECT 1 FROM {}").format(where(table, row, key))).fetchall() == [(1,)], (
            table
        )
        column = sql.Identifier(next((name for name in row if name not in [*key, "timestamp"]), key[-1]))
        update = sql.SQL("UPDATE {0} SET {1} = {1} {2}").format(sql.Identifier(table), column, where("", row, key))
        assert connection.execute(update).rowcount == 1, table


def test_a_second_row_with_the_same_key_is_refused_in_plain_words(connection: Connection) -> None:
    for table, constraint, columns in [*keys("UNIQUE"), *keys("PRIMARY KEY")]:
        row = insert(connection, table, **REQUIRED[table](connection))
        again = REQUIRED[table](connection) | {column: row[column] for column in columns}
        with pytest.raises(psycopg.errors.UniqueViolation) as refusal:
            insert(connection, table, **again)
        assert str(refusal.value.diag.constraint_name).endswith(constraint)
        assert explain_refusal(refusal.value).startswith(f"{table} already has a row with {', '.join(columns)} ")


def test_a_value_that_is_needed_and_missing_is_named(connection: Connection) -> None:
    for table, required in REQUIRED.items():
        needed = [
            name.partition(".")[2]
            for (kind, name), definition in load_catalogue().items()
            if kind == "column" and name.startswith(f"{table}.") and definition.endswith("NOT NULL")
        ]
        row = required(connection)
        for column in needed:
            with pytest.raises(psycopg.errors.NotNullViolation) as refusal:
                insert(connection, table, **row | {column: None})
            assert explain_refusal(refusal.value).endswith(f".{column} needs a value.")


def test_every_foreign_key_does_on_delete_what_the_schema_says(connection: Connection) -> None:
    """Each of CASCADE, SET NULL and RESTRICT, with real rows at both ends."""
    found = rows(connection, FOREIGN_KEYS)
    assert {rule for *_, rule, _ in found} == {"c", "n", "r"}
    for table, column, target, rule, _name in found:
        row = insert(connection, table, **REQUIRED[table](connection))
        if row[column] is None:
            owner = insert(connection, target, **REQUIRED[target](connection))["id"]
            row = insert(connection, table, **REQUIRED[table](connection) | {column: owner})
        delete = sql.SQL('DELETE FROM {} WHERE "id" = {}').format(sql.Identifier(target), sql.Literal(row[column]))
        key = ["id"] if "id" in row else [name for name in row if name.endswith("Id")]
        if rule == "r":
            with pytest.raises(psycopg.errors.IntegrityError) as refusal:
                connection.execute(delete)
            assert explain_refusal(refusal.value).endswith(f"is still in use: {table}.{column} refers to it.")
            continue
        connection.execute(delete)
        select = sql.SQL("SELECT {} FROM {}").format(sql.Identifier(column), where(table, row, key))
        assert connection.execute(select).fetchall() == ([] if rule == "c" else [(None,)])


def test_a_row_that_refers_to_nothing_is_refused_in_plain_words(connection: Connection) -> None:
    for table, column, target, _rule, constraint in rows(connection, FOREIGN_KEYS):
        with pytest.raises(psycopg.errors.ForeignKeyViolation) as refusal:
            insert(connection, table, **REQUIRED[table](connection) | {column: uuid.uuid4()})
        assert refusal.value.diag.constraint_name == constraint
        message = explain_refusal(refusal.value)
        assert message.startswith(f"{table}.{column} refers to a {target} ")
        assert message.endswith("that does not exist.")


def test_every_foreign_key_has_an_index_that_begins_with_it(connection: Connection) -> None:
    """As the schema document promises; a delete at the other end would otherwise read the whole table."""
    unindexed = rows(
        connection,
        """
        SELECT rule.conname
        FROM pg_constraint AS rule
        WHERE rule.contype = 'f' AND rule.connamespace = 'public'::regnamespace AND NOT EXISTS (
            SELECT 1 FROM pg_index AS index
            WHERE index.indrelid = rule.conrelid AND index.indkey[0] = rule.conkey[1]
        )
        """,
    )
    assert unindexed == []


def test_a_machine_takes_with_it_all_that_is_its_own_and_nothing_else(connection: Connection) -> None:
    gone, stays = make_machine(connection), make_machine(connection)
    owned = [
        (name.partition(".")[0], name.partition(".")[2])
        for kind, name in load_catalogue()
        if kind == "column" and name.partition(".")[2] in {"machineId", "vmId"} and name.partition(".")[0] in REQUIRED
    ]
    for table, column in owned:
        for machine in (gone, stays):
            values = REQUIRED[table](connection) | {column: machine}
            insert(connection, table, **values)
    connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (gone,))
    for table, column in owned:
        found = connection.execute(
            sql.SQL("SELECT DISTINCT {0} FROM {1} WHERE {0} IN ({2}, {3})").format(
                sql.Identifier(column), sql.Identifier(table), sql.Literal(gone), sql.Literal(stays)
            )
        ).fetchall()
        left = set(found)
        # A quarantined frame outlives its machine: somebody may still want to know what was in it.
        assert left == ({(gone,), (stays,)} if table == "QuarantinedFrame" else {(stays,)}), table


def test_updated_at_moves_with_the_content_and_only_with_it(connection: Connection) -> None:
    filter_id = nw_filter(connection)

    def updated_at(change: str) -> Any:
        connection.execute(f'UPDATE "NWFilter" SET {change} WHERE "id" = %s'.encode(), (filter_id,))
        ((at,),) = rows(connection, 'SELECT "updatedAt" FROM "NWFilter" WHERE "id" = %s', filter_id)
        return at

    connection.execute("SET session_replication_role = replica")
    made = updated_at("\"updatedAt\" = '2020-01-01Z'")
    connection.execute("SET session_replication_role = origin")
    assert updated_at('"flushedAt" = now()') == made
    assert updated_at('"flushedAt" = now(), "updatedAt" = now()') == made
    assert updated_at('"updatedAt" = now()') == made
    assert updated_at('"priority" = "priority"') == made
    assert updated_at('"priority" = 7') > made
    assert updated_at('"priority" = 8, "updatedAt" = \'2020-01-01Z\'') > made


def test_every_table_with_an_updated_at_keeps_it(connection: Connection) -> None:
    with_column = {
        name.removesuffix(".updatedAt")
        for kind, name in load_catalogue()
        if kind == "column" and name.endswith(".updatedAt")
    }
    with_trigger = {
        name.partition(".")[0] for kind, name in load_catalogue() if kind == "trigger" and name.endswith("_updatedAt")
    }
    # The ledger's only updates are by compare-and-set, which sets it.
    assert with_column - {"IngestLedger"} == with_trigger


def test_a_deleted_user_stays_without_a_session_and_is_no_active_user(connection: Connection) -> None:
    user = make_user(connection, token="secret")
    machine = make_machine(connection, userId=user)
    assert rows(connection, 'SELECT "id" FROM "ActiveUser"') == [(user,)]
    connection.execute('UPDATE "User" SET "deleted" = TRUE WHERE "id" = %s', (user,))
    assert rows(connection, 'SELECT "deleted", "token" FROM "User"') == [(True, "null")]
    assert rows(connection, 'SELECT "id" FROM "ActiveUser"') == []
    assert rows(connection, 'SELECT "userId" FROM "Machine" WHERE "id" = %s', machine) == [(user,)]


def test_the_defaults_are_those_of_the_document(connection: Connection) -> None:
    user = insert(connection, "User", **REQUIRED["User"](connection))
    assert (user["token"], user["avatar"]) == ("null", None)
    machine = insert(connection, "Machine", **REQUIRED["Machine"](connection))
    assert (machine["cpuCores"], machine["ramGB"], machine["diskSizeGB"]) == (0, 0, 0)
    assert (machine["commandLines"], machine["isCollected"]) == (None, True)
    rule = insert(connection, "FWRule", **REQUIRED["FWRule"](connection))
    assert (rule["action"], rule["direction"], rule["protocol"]) == ("accept", "inout", "all")
    made = insert(connection, "NWFilter", **REQUIRED["NWFilter"](connection))
    assert (made["type"], made["priority"], made["stateMatch"], made["flushedAt"]) == ("generic", 500, True, None)
    everywhere = insert(connection, "GlobalServiceConfig", serviceId="ssh")
    assert (everywhere["useEnabled"], everywhere["provideEnabled"]) == (True, False)
    app = insert(connection, "ApplicationUsage", **REQUIRED["ApplicationUsage"](connection))
    assert (app["accessCount"], app["totalUsageMinutes"], app["isActive"]) == (0, 0, True)
    windows = insert(connection, "WindowsService", **REQUIRED["WindowsService"](connection))
    assert (windows["usageScore"], windows["stateChangeCount"], windows["isDefaultService"]) == (0, 0, False)
    port = insert(connection, "PortUsage", **REQUIRED["PortUsage"](connection))
    assert (port["isListening"], port["connectionCount"]) == (False, 0)


def test_a_machine_keeps_its_id(connection: Connection) -> None:
    machine = make_machine(connection)
    with pytest.raises(psycopg.errors.CheckViolation, match="never changes"):
        connection.execute('UPDATE "Machine" SET "id" = gen_random_uuid() WHERE "id" = %s', (machine,))


def test_a_new_or_deleted_machine_and_what_is_set_for_its_guest_are_announced(dsn: str, connection: Connection) -> None:
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN guestd_machine")
        machine = make_machine(connection)
        connection.execute('UPDATE "Machine" SET "status" = \'off\'')
        connection.execute('UPDATE "Machine" SET "commandLines" = \'off\'')
        connection.execute('UPDATE "Machine" SET "isCollected" = FALSE')
        connection.execute('DELETE FROM "Machine" WHERE "id" = %s', (machine,))
        connection.execute("SELECT pg_notify('guestd_machine', 'the last')")
        notices = list(listener.notifies(timeout=10, stop_after=5))
    assert [notice.payload for notice in notices] == ["", "", "", "", "the last"]
