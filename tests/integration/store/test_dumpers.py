"""How values go into binary COPY, by the compiled encoder and without it, by what comes out of the tables."""

import itertools
import operator
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest

from guestd.rows.model import Group, Values
from guestd.store import dumpers
from guestd.store.copy import write_by_psycopg, write_rows
from gueststore import contract
from gueststore.contract import Column

NOON = datetime(2025, 10, 1, 12, 0, 0, 125_000, tzinfo=UTC)


Write = Callable[[psycopg.AsyncCopy, contract.Table, list[Group]], Awaitable[None]]
pytestmark = pytest.mark.parametrize("write", [write_rows, write_by_psycopg])


def groups_of(rows: list[Values]) -> list[Group]:
    """Rows that follow each other and begin with the same value share it."""
    return [
        Group((first,), [row[1:] for row in some])
        for first, some in itertools.groupby(rows, key=operator.itemgetter(0))
    ]


async def copied(write: Write, dsn: str, rows: list[Values], *types: str) -> list[Values]:
    table = contract.Table(
        "copied", tuple(Column(f"c{place}", name, is_nullable=True) for place, name in enumerate(types))
    )
    columns = ", ".join(f"{name} {type_name}" for name, type_name in table.types.items())
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        dumpers.register_dumpers(connection)
        await connection.execute(f"CREATE TEMPORARY TABLE copied (row serial, {columns})".encode())
        names = table.column_list
        cursor = connection.cursor()
        async with cursor.copy(f"COPY copied ({names}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
            await write(copy, table, groups_of(rows))
        await connection.execute("SET TIME ZONE 'UTC'")
        return await (await connection.execute(f"SELECT {names} FROM copied ORDER BY row".encode())).fetchall()


@pytest.mark.asyncio
async def test_times_and_keys_of_rows_in_turns_come_out_as_they_went_in(write: Write, dsn: str) -> None:
    one, other = uuid4(), uuid4()
    later = NOON + timedelta(days=1, microseconds=1)
    rows = [(one, NOON, later), (one, NOON, NOON), (other, later, None), (one, later, NOON), (None, None, later)]
    assert await copied(write, dsn, rows, "uuid", "timestamptz", "timestamptz") == rows


@pytest.mark.asyncio
async def test_unix_seconds_are_the_same_time_as_the_time_they_stand_for(write: Write, dsn: str) -> None:
    seconds = [NOON.timestamp(), 0.5, 7_258_118_399.0, 1e-3]
    assert await copied(write, dsn, [(each,) for each in seconds], "timestamptz") == [
        (datetime.fromtimestamp(each, UTC),) for each in seconds
    ]


@pytest.mark.asyncio
async def test_a_time_in_another_zone_is_the_same_moment(write: Write, dsn: str) -> None:
    elsewhere = datetime.fromisoformat("2025-10-01T14:00:00.125+02:00")
    assert await copied(write, dsn, [(elsewhere,), (NOON,)], "timestamptz") == [(NOON,), (NOON,)]


@pytest.mark.asyncio
async def test_every_type_of_the_contract_comes_out_as_it_went_in(write: Write, dsn: str) -> None:
    types = ("int4", "int8", "float8", "text", "bytea", "bool", "uuid", "timestamptz")
    rows: list[Values] = [
        (-(2**31), 2**63 - 1, 0.1, "Müller 🐢", b"\x00\xff", True, uuid4(), NOON),
        (2**31 - 1, -(2**63), float("inf"), "", b"", False, uuid4(), NOON),
        (None,) * 8,
    ]
    assert await copied(write, dsn, rows * 200, *types) == rows * 200


@pytest.mark.asyncio
async def test_json_in_bytes_is_json(write: Write, dsn: str) -> None:
    assert await copied(write, dsn, [(b'{"a": [1]}',), (None,)], "jsonb") == [({"a": [1]},), (None,)]


@pytest.mark.asyncio
async def test_no_rows_are_a_copy_of_none(write: Write, dsn: str) -> None:
    assert await copied(write, dsn, [], "int4") == []


@pytest.mark.asyncio
async def test_what_a_column_cannot_hold_ends_the_copy_with_an_error(write: Write, dsn: str) -> None:
    with pytest.raises(UnicodeError):
        await copied(write, dsn, [("\ud800",)], "text")
