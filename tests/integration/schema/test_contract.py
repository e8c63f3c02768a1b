"""The contract's columns are those of the live catalogue."""

import pytest

from gueststore import contract
from gueststore.contract import Table
from gueststore.database import Connection
from gueststore.queries import query
from gueststore.scripts import load_scripts
from support.schema import rows

COLUMNS = """
SELECT attribute.attname, type.typname
FROM pg_attribute AS attribute
INNER JOIN pg_type AS type ON attribute.atttypid = type.oid
WHERE attribute.attrelid = quote_ident(%s)::regclass AND attribute.attnum > 0 AND NOT attribute.attisdropped
"""


@pytest.mark.parametrize("table", contract.SERIES, ids=lambda table: table.name)
def test_a_series_is_copied_with_all_its_columns_in_their_types(connection: Connection, table: Table) -> None:
    assert dict(table.columns) == dict(rows(connection, COLUMNS, table.name))


@pytest.mark.parametrize(
    "table", [contract.INCOMING_APPLICATION, contract.INCOMING_SERVICE], ids=lambda table: table.name
)
def test_an_inventory_waits_in_a_table_of_the_contracts_columns(connection: Connection, table: Table) -> None:
    connection.execute(query("ingest/create_incoming"))
    connection.execute(query("ingest/create_incoming"))  # once more does no harm
    assert dict(table.columns) == dict(rows(connection, COLUMNS, table.name))


def test_the_contract_is_written_for_the_newest_migration(connection: Connection) -> None:
    newest = load_scripts().migrations[-1]
    assert newest.number == contract.SCHEMA_VERSION
    version, compat = connection.execute(query("schema/read_version")).fetchone() or (0, 0)
    assert contract.mismatch(version, compat) is None
