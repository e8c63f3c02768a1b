"""Rows of a table through COPY in binary: by the compiled encoder (compiled.c), where that is not there by psycopg.

hatch_build.py compiles it when guestd is installed; where there is no compiler nothing is missing but speed.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from guestd.rows.normalise import Row
from gueststore import contract

encode: Callable[[list[Row], int, int, str], bytes] | None
"""Rows from the one number to below the other, of columns of these kinds, as COPY takes them behind its header."""
try:
    import guestd_rows
except ImportError:
    encode = None
else:
    encode = guestd_rows.encode

_KINDS = {
    "uuid": "u", "timestamptz": "t", "int4": "i", "int8": "q", "float8": "d",
    "text": "s", "jsonb": "j", "bytea": "y", "bool": "b",
}  # fmt: skip
# Before the first row and behind the last: postgresql.org/docs/current/sql-copy.html, Binary Format.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
# Some 64 KiB of processes: the server begins with them while the next are encoded.
ROWS_AT_ONCE = 256


def kinds(table: contract.Table) -> str:
    """The types of a table's columns as `encode` takes them, a letter each."""
    return "".join(_KINDS[type_name] for _, type_name in table.columns)


async def write(copy: psycopg.AsyncCopy, table: contract.Table, rows: list[Row]) -> None:
    """Rows into a COPY of the table that has begun. OverflowError, TypeError or UnicodeError for what does not fit."""
    if encode is None:
        await write_by_psycopg(copy, table, rows)
        return
    letters = kinds(table)
    await copy.write(HEADER)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        await copy.write(encode(rows, start, start + ROWS_AT_ONCE, letters))
    await copy.write(TRAILER)


async def write_by_psycopg(copy: psycopg.AsyncCopy, table: contract.Table, rows: list[Row]) -> None:
    """The same without the encoder."""
    copy.set_types([type_name for _, type_name in table.columns])
    for row in rows:
        await copy.write_row(row)
