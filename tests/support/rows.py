"""One line of a guest to rows, and rows as tests look at them."""

import json
import math
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from guestd.core.config import CommandLines
from guestd.core.transport import Transport
from guestd.rows.batch import digest
from guestd.rows.model import Rows, whole_rows
from guestd.rows.normalise import GuestHistory, normalise
from guestd.rows.times import guest_time, sample_time
from guestd.wire.decode import decode
from guestd.wire.line import read_line
from gueststore import contract

MACHINE = UUID("b0a1f2c4-5d6e-4f70-8a91-0b1c2d3e4f50")
ROW = UUID("01999fa5-3bb1-7000-8000-000000000000")
RECEIVED = datetime(2025, 10, 1, 12, 0, 31, 250_000, tzinfo=UTC)
TABLES = {table.name: table for table in contract.TABLES}


def rows_of(payload: bytes, stream: GuestHistory, command_lines: CommandLines = "redacted") -> Rows:
    message = decode(payload)
    metrics = message.metrics
    return normalise(
        metrics,
        row_id=ROW,
        machine_id=MACHINE,
        timestamp=sample_time(guest_time(metrics.timestamp), RECEIVED, Transport.VIRTIO),
        received_at=RECEIVED,
        digest=digest(payload, read_line(payload).line_id, message),
        history=stream,
        command_lines=command_lines,
    )


def by_table(rows: Rows) -> dict[str, list[tuple[Any, ...]]]:
    """The whole rows of each table, in the order of its columns."""
    return {table.name: list(whole_rows(rows.group(table))) for table in contract.TABLES}


def plain(value: object, type_name: str) -> object:
    """A column's value as the vectors write it."""
    if isinstance(value, bytes):
        return json.loads(value) if type_name == "jsonb" else b64encode(value).decode()
    if isinstance(value, float) and type_name == "timestamptz":
        return datetime.fromtimestamp(value, UTC)
    return str(value) if isinstance(value, UUID) else value


def named(table: contract.Table, row: tuple[Any, ...]) -> dict[str, Any]:
    assert len(row) == len(table.columns)
    return {name: plain(value, type_name) for (name, type_name), value in zip(table.types.items(), row, strict=True)}


PYTHON_TYPES: dict[str, type] = {
    "uuid": UUID,
    "timestamptz": datetime,
    "float8": float,
    "jsonb": bytes,
    "int8": int,
    "int4": int,
    "text": str,
    "bool": bool,
    "bytea": bytes,
}
LATEST_START_SECONDS = datetime(2200, 1, 1, tzinfo=UTC).timestamp()


def fits(table: contract.Table, row: tuple[Any, ...]) -> Iterator[str]:
    """What of a row does not fit its table."""
    if len(row) != len(table.columns):
        yield f"{len(row)} values"
    for each, value in zip(table.columns, row, strict=False):
        column, type_name = each.name, each.type
        if value is None:
            if not each.is_nullable:
                yield f"{column} is null"
        elif column == "startTime" and type(value) is float:  # unix seconds are a time there as well
            if not 0 < value < LATEST_START_SECONDS:
                yield f"{column} is {value}"
        elif (found := type(value)) is not PYTHON_TYPES[type_name]:
            yield f"{column} is {found.__name__}"
        elif (type_name == "int4" and not -(2**31) <= value < 2**31) or (
            type_name == "int8" and not -(2**63) <= value < 2**63
        ):
            yield f"{column} is out of range"
        elif type_name == "float8" and not math.isfinite(value):
            yield f"{column} is {value}"
        elif type_name == "text" and ("\0" in value or any("\ud800" <= each <= "\udfff" for each in value)):
            yield f"{column} has a NUL or half a character"
        elif type_name == "jsonb" and (rb"\u0000" in value or b"\0" in value):
            yield f"{column} has a NUL"


def misfits(rows: Rows) -> list[tuple[str, str]]:
    """What of a message's rows does not fit, by table."""
    return [
        (name, problem) for name, some in by_table(rows).items() for row in some for problem in fits(TABLES[name], row)
    ]
