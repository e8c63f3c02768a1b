"""How values go into binary COPY, by what comes out of the tables."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from guestd import dumpers

NOON = datetime(2025, 10, 1, 12, 0, 0, 125_000, tzinfo=UTC)


async def copied(dsn: str, rows: Sequence[tuple[Any, ...]], *types: str) -> list[tuple[Any, ...]]:
    columns = ", ".join(f"c{place} {name}" for place, name in enumerate(types))
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        dumpers.put_on(connection)
        await connection.execute(f"CREATE TEMPORARY TABLE copied (row serial, {columns})".encode())
        names = ", ".join(f"c{place}" for place in range(len(types)))
        cursor = connection.cursor()
        async with cursor.copy(f"COPY copied ({names}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
            copy.set_types(types)
            for row in rows:
                await copy.write_row(row)
        await connection.execute("SET TIME ZONE 'UTC'")
        return await (await connection.execute(f"SELECT {names} FROM copied ORDER BY row".encode())).fetchall()


@pytest.mark.asyncio
async def test_times_and_keys_of_rows_in_turns_come_out_as_they_went_in(dsn: str) -> None:
    one, other = uuid4(), uuid4()
    later = NOON + timedelta(days=1, microseconds=1)
    rows = [(one, NOON, later), (one, NOON, NOON), (other, later, None), (one, later, NOON), (None, None, later)]
    assert await copied(dsn, rows, "uuid", "timestamptz", "timestamptz") == rows


@pytest.mark.asyncio
async def test_unix_seconds_are_the_same_time_as_the_time_they_stand_for(dsn: str) -> None:
    seconds = [NOON.timestamp(), 0.5, 7_258_118_399.0, 1e-3]
    assert await copied(dsn, [(each,) for each in seconds], "timestamptz") == [
        (datetime.fromtimestamp(each, UTC),) for each in seconds
    ]


@pytest.mark.asyncio
async def test_a_time_in_another_zone_is_the_same_moment(dsn: str) -> None:
    elsewhere = datetime.fromisoformat("2025-10-01T14:00:00.125+02:00")
    assert await copied(dsn, [(elsewhere,), (NOON,)], "timestamptz") == [(NOON,), (NOON,)]
