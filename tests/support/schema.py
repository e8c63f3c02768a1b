"""Rows for tests of the schema, with only what matters spelled out, and a connection to put them through."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg.rows
import pytest
from psycopg import sql

from gueststore.database import Connection

# A real bcrypt hash, of the word secret.
BCRYPT = "$2b$04$x7zC3vT0fyPqSB8jQ0cVROg3ZPXcOwI2sXqS8nFzOxJq5c7mJm6Oi"


@pytest.fixture
def connection(dsn: str) -> Iterator[Connection]:
    """A connection in autocommit mode to the test's own migrated database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def insert(connection: Connection, table: str, **values: object) -> dict[str, Any]:
    """Insert one row and return it whole, by column name."""
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING *").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(sql.Placeholder() * len(values)),
    )
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute(statement, list(values.values())).fetchone()
    assert row is not None
    return row


def make_user(connection: Connection, **values: object) -> uuid.UUID:
    """A user; every column can be overruled by name."""
    row = {
        "email": f"{uuid.uuid4()}@example.com",
        "password": BCRYPT,
        "deleted": False,
        "firstName": "Ada",
        "lastName": "Lovelace",
        "role": "USER",
    }
    return uuid.UUID(str(insert(connection, "User", **(row | values))["id"]))


def make_template(connection: Connection, **values: object) -> uuid.UUID:
    """A machine template."""
    row = {"name": "small", "cores": 2, "ram": 4, "storage": 20}
    return uuid.UUID(str(insert(connection, "MachineTemplate", **(row | values))["id"]))


def make_machine(connection: Connection, **values: object) -> uuid.UUID:
    """A machine, with a template of its own unless one is given."""
    row: dict[str, object] = {
        "name": "vm",
        "internalName": str(uuid.uuid4()),
        "status": "running",
        "os": "ubuntu",
    }
    if "templateId" not in values:
        row["templateId"] = make_template(connection)
    return uuid.UUID(str(insert(connection, "Machine", **(row | values))["id"]))


def rows(connection: Connection, select: str, *parameters: object) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return connection.execute(select.encode(), parameters or None).fetchall()
