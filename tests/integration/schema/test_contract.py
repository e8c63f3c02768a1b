"""The contract's columns, their types, which may be NULL, and the keys are those of the live catalogue."""

import pytest

from guestd.rows.model import KEYED
from gueststore import contract
from gueststore.contract import Table
from gueststore.database import Connection
from gueststore.queries import query
from gueststore.scripts import load_scripts
from support.schema import rows

COLUMNS = """
SELECT attribute.attname, type.typname, NOT attribute.attnotnull
FROM pg_attribute AS attribute
INNER JOIN pg_type AS type ON attribute.atttypid = type.oid
WHERE attribute.attrelid = quote_ident(%s)::regclass AND attribute.attnum > 0 AND NOT attribute.attisdropped
"""
KEY = """
SELECT attribute.attname
FROM pg_index AS index
INNER JOIN pg_attribute AS attribute ON index.indrelid = attribute.attrelid AND attribute.attnum = ANY (index.indkey)
WHERE index.indrelid = quote_ident(%s)::regclass AND index.indisprimary
"""


def declared(table: Table) -> list[tuple[str, str, bool]]:
    return sorted((column.name, column.type, column.is_nullable) for column in table.columns)


@pytest.mark.parametrize("table", contract.SERIES, ids=lambda table: table.name)
def test_a_series_is_copied_with_all_its_columns_in_their_types(connection: Connection, table: Table) -> None:
    assert declared(table) == sorted(rows(connection, COLUMNS, table.name))


@pytest.mark.parametrize("table", KEYED, ids=lambda table: table.name)
def test_the_rows_of_a_sample_differ_in_the_declared_key(connection: Connection, table: Table) -> None:
    assert {name for (name,) in rows(connection, KEY, table.name)} == {"machineId", "timestamp", table.key}


@pytest.mark.parametrize(
    "table", [contract.INCOMING_APPLICATION, contract.INCOMING_SERVICE], ids=lambda table: table.name
)
def test_an_inventory_waits_in_a_table_of_the_contracts_columns(connection: Connection, table: Table) -> None:
    connection.execute(query("ingest/create_incoming"))
    connection.execute(query("ingest/create_incoming"))  # once more does no harm
    assert declared(table) == sorted(rows(connection, COLUMNS, table.name))


def test_the_contract_is_written_for_the_newest_migration(connection: Connection) -> None:
    newest = load_scripts().migrations[-1]
    assert newest.number == contract.SCHEMA_VERSION
    version, compat = connection.execute(query("schema/read_version")).fetchone() or (0, 0)
    assert contract.mismatch(version, compat) is None
