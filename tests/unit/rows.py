"""One line of a guest to rows, and rows as tests look at them."""

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from guestd.batch import digest
from guestd.decoding import decode
from guestd.messages import header
from guestd.normalise import Channel, Rows, Stream, guest_time, normalise, sample_time
from gueststore import contract

MACHINE = UUID("b0a1f2c4-5d6e-4f70-8a91-0b1c2d3e4f50")
ROW = UUID("01999fa5-3bb1-7000-8000-000000000000")
RECEIVED = datetime(2025, 10, 1, 12, 0, 31, 250_000, tzinfo=UTC)
TABLES = {table.name: table for table in (*contract.SERIES, contract.INCOMING_APPLICATION, contract.INCOMING_SERVICE)}


def rows_of(payload: bytes, stream: Stream) -> Rows:
    message = decode(payload)
    metrics = message.metrics
    return normalise(
        metrics,
        row_id=ROW,
        machine_id=MACHINE,
        timestamp=sample_time(guest_time(metrics.timestamp), RECEIVED, Channel.VIRTIO),
        received_at=RECEIVED,
        digest=digest(payload, header(payload), message),
        stream=stream,
    )


def by_table(rows: Rows) -> dict[str, list[tuple[Any, ...]]]:
    return {
        "SystemMetrics": [rows.system_metrics],
        "ProcessSnapshot": rows.processes,
        "PortUsage": rows.ports,
        "ApplicationUsageHistory": rows.application_history,
        "incoming_application": rows.applications,
        "incoming_service": rows.services,
    }


def plain(value: object, type_name: str) -> object:
    """A column's value as the vectors write it."""
    if isinstance(value, bytes):
        return json.loads(value) if type_name == "jsonb" else b64encode(value).decode()
    return str(value) if isinstance(value, UUID) else value


def named(table: contract.Table, row: tuple[Any, ...]) -> dict[str, Any]:
    assert len(row) == len(table.columns)
    return {name: plain(value, type_name) for (name, type_name), value in zip(table.columns, row, strict=True)}
