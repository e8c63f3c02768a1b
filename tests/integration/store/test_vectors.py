"""The wire vectors reach the store: what they say of the series' rows is what the tables hold."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from guestd.core.ledger import Ledger
from guestd.rows.batch import Prepared
from guestd.rows.normalise import GuestHistory
from guestd.store.batch_writer import open_store
from guestd.wire.framing import Framer
from guestd.wire.line import read_lines
from gueststore import contract
from support.rows import MACHINE, RECEIVED, rows_of
from support.schema import insert, make_template

LIMIT_BYTES = 16 * 1024
VECTORS = Path(__file__).parents[2] / "unit/vectors"
MACHINE_ROW = {"id": MACHINE, "name": "vm", "internalName": str(MACHINE), "status": "running", "os": "debian"}
NAMES = sorted(path.stem for path in VECTORS.glob("*.wire"))


def expected_rows(table: contract.Table, expected: dict[str, Any]) -> list[dict[str, object]] | None:
    """What a line's expectation says of a table; None when it says nothing."""
    if "rows" not in expected or table.name not in expected["rows"]:
        return None
    times = {name for name, type_name in table.types.items() if type_name == "timestamptz"}
    return [
        {name: datetime.fromisoformat(value) if value and name in times else value for name, value in row.items()}
        for row in expected["rows"][table.name]
    ]


def stored_rows(connection: psycopg.Connection[dict[str, Any]], table: contract.Table) -> list[dict[str, object]]:
    """The rows of a table as the vectors write them."""
    order = sql.Identifier(table.key or "timestamp")
    select = sql.SQL("SELECT * FROM {} ORDER BY {}").format(sql.Identifier(table.name), order)
    return [
        {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}
        for row in connection.execute(select)
    ]


def assert_stored(connection: psycopg.Connection[dict[str, Any]], expected: dict[str, Any]) -> None:
    """The series hold what the expectation says; they are empty afterwards."""
    for table in contract.SERIES:
        if (rows := expected_rows(table, expected)) is not None:
            stored = stored_rows(connection, table)
            shown = [{name: row[name] for name in columns} for row, columns in zip(stored, rows, strict=True)]
            assert shown == rows
        connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table.name)))


@pytest.mark.asyncio
@pytest.mark.parametrize("name", NAMES)
async def test_the_series_hold_what_a_vector_says(dsn: str, name: str) -> None:
    framed = Framer(LIMIT_BYTES).feed((VECTORS / f"{name}.wire").read_bytes())
    messages = [message for line in framed for message in read_lines(line)]
    expectations = json.loads((VECTORS / f"{name}.json").read_text())
    history, spool_id = GuestHistory(), uuid4()
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as reader:
        reader.execute("SET TIME ZONE 'UTC'")
        with psycopg.connect(dsn, autocommit=True) as connection:
            insert(connection, "Machine", **MACHINE_ROW, templateId=make_template(connection))
        async with open_store(dsn) as store:
            await store.set_ledger(spool_id, None, Ledger(0))
            for seq, (message, expected) in enumerate(zip(messages, expectations, strict=True), 1):
                payload = message.payload
                if payload is not None and not expected.keys() & {"bad_frame", "fragment"}:
                    frame = Prepared(seq, MACHINE, RECEIVED, payload, rows_of(payload, history), None)
                    await store.write(spool_id, Ledger(seq - 1), [frame])
                    assert_stored(reader, expected)
                else:
                    await store.set_ledger(spool_id, Ledger(seq - 1), Ledger(seq))
