"""Writes rows of a table with binary COPY, encoded by guestd_rows.c, or by psycopg where that is not compiled.

hatch_build.py compiles it when guestd is installed; without a C compiler guestd is slower and otherwise the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import psycopg

from guestd.rows.model import Group, whole_rows
from gueststore.contract import Table

encode: Callable[[list[Group], str], bytes] | None
"""Encodes the rows of groups, with columns of these kinds, for COPY; without header and trailer."""
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
# About 64 KiB of processes: the server works on them while the next are encoded.
ROWS_AT_ONCE = 256


def kinds(table: Table) -> str:
    """The types of a table's columns, one letter each, for `encode`."""
    return "".join(_KINDS[type_name] for type_name in table.types.values())


async def write_rows(copy: psycopg.AsyncCopy, table: Table, groups: Iterable[Group]) -> None:
    """Write rows into a COPY of the table.

    OverflowError, TypeError, UnicodeError or struct.error for a value that does not fit its column.
    """
    if encode is None:
        await write_by_psycopg(copy, table, groups)
        return
    letters = kinds(table)
    await copy.write(HEADER)
    for part in _parts(groups):
        await copy.write(encode(part, letters))
    await copy.write(TRAILER)


def _parts(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """The rows of the groups in parts of about ROWS_AT_ONCE."""
    part: list[Group] = []
    count = 0
    for group in groups:
        for some in (group,) if len(group.rows) <= ROWS_AT_ONCE else _split(group):
            part.append(some)
            count += len(some.rows)
            if count >= ROWS_AT_ONCE:
                yield part
                part, count = [], 0
    if part:
        yield part


def _split(group: Group) -> Iterator[Group]:
    for start in range(0, len(group.rows), ROWS_AT_ONCE):
        yield Group(group.shared, group.rows[start : start + ROWS_AT_ONCE])


async def write_by_psycopg(copy: psycopg.AsyncCopy, table: Table, groups: Iterable[Group]) -> None:
    """The same without the encoder."""
    copy.set_types(list(table.types.values()))
    for group in groups:
        for row in whole_rows(group):
            await copy.write_row(row)
