"""Quarantined frames: list, read, retry, delete.

A retry makes the rows of the whole frame again, as this version of the daemon does, and stores those that are missing.
The frame is removed from the quarantine in the same transaction when none of its rows is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from guestd.core.config import CommandLines
from guestd.core.errors import BadFrame, RowsRejected
from guestd.core.text import escape_to_ascii
from guestd.core.transport import Transport
from guestd.ingest.prepare import CommandLinesOf, Preparer
from guestd.rows.model import Rows
from guestd.spool.file import Frame
from guestd.store.batch_writer import SEARCH_WINDOW, describe_refusals, open_store_on, summarise_refusals
from guestd.store.connection import ROW_SECONDS, WRITE_SECONDS, store_deadline
from guestd.telemetry.registry import PrepareMetrics
from guestd.wire.events import Event
from guestd.wire.line import read_line
from gueststore.queries import query

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class FrameSummary:
    """A quarantined frame without its payload."""

    id: UUID
    machineId: UUID | None  # noqa: N815 -- the column's name
    receivedAt: datetime  # noqa: N815 -- the column's name
    reason: str
    detail: str
    stored: bool
    attempts: int
    refused: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class QuarantinedFrame:
    """A quarantined frame."""

    id: UUID
    machineId: UUID | None  # noqa: N815 -- the column's name
    receivedAt: datetime  # noqa: N815 -- the column's name
    seq: int
    reason: str
    detail: str
    refusals: list[Any]
    stored: bool
    attempts: int
    frameDigest: int | None  # noqa: N815 -- the column's name
    payload: bytes


@dataclass(frozen=True, slots=True)
class RetryResult:
    """The result of a retry: all is stored, or the reason why not."""

    is_stored: bool
    why: str


async def list_frames(connection: Connection, *, reason: str | None, limit: int) -> Sequence[FrameSummary]:
    """The newest frames with a reason, or with any."""
    async with store_deadline(ROW_SECONDS), connection.cursor(row_factory=class_row(FrameSummary)) as cursor:
        await cursor.execute(query("quarantine/read_frames"), {"reason": reason, "most": limit})
        return await cursor.fetchall()


async def read_frame(connection: Connection, frame_id: UUID) -> QuarantinedFrame | None:
    """Read a frame; None when there is none with this id."""
    async with store_deadline(ROW_SECONDS), connection.cursor(row_factory=class_row(QuarantinedFrame)) as cursor:
        await cursor.execute(query("quarantine/read_frame"), {"id": frame_id})
        return await cursor.fetchone()


async def delete_frames(
    connection: Connection, *, ids: Sequence[UUID] | None, reason: str | None, older_than: datetime | None
) -> int:
    """Delete the frames that match all given conditions; returns their number."""
    async with store_deadline(WRITE_SECONDS):
        conditions = {"ids": None if ids is None else list(ids), "reason": reason, "older_than": older_than}
        return (await connection.execute(query("quarantine/delete_frames"), conditions)).rowcount


async def retry_frame(connection: Connection, frame_id: UUID, command_lines: CommandLines) -> RetryResult:
    """Store the rows of a frame that can be stored now; a failure is counted in its row.

    `command_lines` is the setting for machines without their own.
    """
    store = await open_store_on(connection)
    try:
        async with store_deadline(WRITE_SECONDS), connection.transaction():
            await connection.execute(query("quarantine/lock_frame"), {"id": frame_id})
            frame = await read_frame(connection, frame_id)
            if frame is None:
                return RetryResult(is_stored=False, why="there is no frame with this id")
            preparer = Preparer(PrepareMetrics(), _command_lines_of(connection, command_lines))
            (prepared,) = await preparer.prepare(
                [_original_frame(frame)], store.find_stored_timestamps, store.find_sample_times
            )
            content = prepared.content
            if isinstance(content, BadFrame):
                return await _record_failure(connection, frame, content.reason, str(content))
            if isinstance(content, Rows):
                # The digest of the received bytes: secrets may have been removed from the quarantined ones.
                content = content.with_shared(digest=frame.frameDigest)
            if not await store.store_missing(content, sample_at=await _sample_at(connection, frame, content)):
                return await _record_failure(connection, frame, "unknown_machine", "the store has no such Machine")
            if isinstance(content, Rows) and content.refusals:
                summary = summarise_refusals(content.refusals)
                return await _record_failure(connection, frame, "row_refused", summary, content)
            await delete_frames(connection, ids=[frame_id], reason=None, older_than=None)
            return RetryResult(is_stored=True, why="")
    except RowsRejected as exc:
        # The transaction was rolled back with all that it had stored.
        assert frame is not None
        async with store_deadline(ROW_SECONDS), connection.transaction():
            return await _record_failure(connection, frame, "rejected_by_store", str(exc))


def _original_frame(frame: QuarantinedFrame) -> Frame:
    """The frame as it was received. Its transport is not recorded: MQTT allows the widest range of sample times."""
    machine_id, line = frame.machineId or UUID(int=0), read_line(frame.payload)
    return Frame(frame.seq, machine_id, frame.receivedAt, frame.payload, Transport.MQTT, line.kind, line.line_id)


def _command_lines_of(connection: Connection, default: CommandLines) -> CommandLinesOf:
    async def of(machine_id: UUID) -> CommandLines:
        cursor = await connection.execute('SELECT "commandLines" FROM "Machine" WHERE "id" = %s', (machine_id,))
        (chosen,) = await cursor.fetchone() or (None,)
        return chosen or default

    return of


async def _sample_at(connection: Connection, frame: QuarantinedFrame, content: Rows | Event) -> datetime | None:
    """The timestamp under which a part of the frame is stored already; None when nothing is."""
    if isinstance(content, Event):
        return None
    times = (frame.receivedAt, content.shared.timestamp)
    cursor = await connection.execute(
        query("quarantine/read_sample_time"),
        {
            "machine_id": frame.machineId,
            "received_at": frame.receivedAt,
            "digest": frame.frameDigest,
            "earliest": min(times) - SEARCH_WINDOW,
            "latest": max(times) + SEARCH_WINDOW,
        },
    )
    (at,) = await cursor.fetchone() or (None,)
    return at


async def _record_failure(
    connection: Connection, frame: QuarantinedFrame, reason: str, detail: str, stored: Rows | None = None
) -> RetryResult:
    refusals = frame.refusals
    if stored is not None:
        refusals = describe_refusals(stored.refusals)
    await connection.execute(
        query("quarantine/update_frame"),
        {
            "id": frame.id,
            "reason": reason,
            "detail": escape_to_ascii(detail),
            "refusals": Jsonb(refusals),
            "stored": stored is not None,
        },
    )
    return RetryResult(is_stored=False, why=f"{reason}: {escape_to_ascii(detail)}")
