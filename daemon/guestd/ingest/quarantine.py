"""Frames that were set aside: looked at, retried, dropped; and kept within bounds.

A retry makes rows of the whole frame once more, as the daemon of today would, and stores those that are not there yet;
the frame leaves the quarantine in the same transaction when nothing of it is refused any more.
"""

from __future__ import annotations

import asyncio
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
from guestd.store.batch_writer import LOOK_AROUND, store_on
from guestd.store.connection import WRITE_SECONDS, sorted_errors
from guestd.telemetry.registry import PrepareMetrics
from guestd.wire.events import Event
from guestd.wire.line import read_line
from gueststore.queries import query

Connection = psycopg.AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class Listed:
    """One frame that is set aside, without its bytes."""

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
class Held:
    """One frame that is set aside, whole."""

    id: UUID
    machineId: UUID | None  # noqa: N815 -- the column's name
    receivedAt: datetime  # noqa: N815 -- the column's name
    seq: int
    reason: str
    detail: str
    refusals: list[dict[str, str]]
    stored: bool
    attempts: int
    frameDigest: int | None  # noqa: N815 -- the column's name
    payload: bytes


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry came to: all is stored, or why not."""

    is_stored: bool
    why: str


async def listed(connection: Connection, *, reason: str | None, limit: int) -> Sequence[Listed]:
    """The newest frames of a reason, or of all."""
    async with sorted_errors(), connection.cursor(row_factory=class_row(Listed)) as cursor:
        await cursor.execute(query("quarantine/read_frames"), {"reason": reason, "most": limit})
        return await cursor.fetchall()


async def held(connection: Connection, frame_id: UUID) -> Held | None:
    """One frame whole; None when it is not there."""
    async with sorted_errors(), connection.cursor(row_factory=class_row(Held)) as cursor:
        await cursor.execute(query("quarantine/lock_frame"), {"id": frame_id})
        return await cursor.fetchone()


async def dropped(
    connection: Connection, *, ids: Sequence[UUID] | None, reason: str | None, older_than: datetime | None
) -> int:
    """Delete the frames that meet all conditions that are given; how many there were."""
    async with sorted_errors():
        conditions = {"ids": None if ids is None else list(ids), "reason": reason, "older_than": older_than}
        return (await connection.execute(query("quarantine/delete_frames"), conditions)).rowcount


async def retried(connection: Connection, frame_id: UUID, command_lines: CommandLines) -> Retried:
    """Store what can be stored of a frame now; a failure is counted in its row.

    `command_lines` is the setting for machines that have none of their own.
    """
    store = await store_on(connection)
    try:
        async with sorted_errors(), asyncio.timeout(WRITE_SECONDS), connection.transaction():
            frame = await held(connection, frame_id)
            if frame is None:
                return Retried(is_stored=False, why="there is no such frame")
            preparer = Preparer(PrepareMetrics(), _command_lines_of(connection, command_lines))
            (prepared,) = await preparer.prepare([_as_it_came(frame)], store.taken)
            content = prepared.content
            if isinstance(content, BadFrame):
                return await _kept(connection, frame, content.reason, str(content))
            if isinstance(content, Rows):
                # Of the bytes as they came: what is set aside may have lost its secrets.
                content = content.with_shared(digest=frame.frameDigest)
            if not await store.rewrite(content, sample_at=await _sample_at(connection, frame, content)):
                return await _kept(connection, frame, "unknown_machine", "the store has no such Machine")
            if isinstance(content, Rows) and content.refusals:
                return await _kept(connection, frame, "row_refused", f"{len(content.refusals)} rows refused", content)
            await dropped(connection, ids=[frame_id], reason=None, older_than=None)
            return Retried(is_stored=True, why="")
    except RowsRejected as exc:
        # The transaction is gone with all that it had stored.
        assert frame is not None
        async with sorted_errors(), connection.transaction():
            return await _kept(connection, frame, "rejected_by_store", str(exc))


def _as_it_came(frame: Held) -> Frame:
    """By which channel is not recorded: a broker's is judged more leniently in what time a sample may claim."""
    machine_id, line = frame.machineId or UUID(int=0), read_line(frame.payload)
    return Frame(frame.seq, machine_id, frame.receivedAt, frame.payload, Transport.MQTT, line.kind, line.line_id)


def _command_lines_of(connection: Connection, default: CommandLines) -> CommandLinesOf:
    async def of(machine_id: UUID) -> CommandLines:
        cursor = await connection.execute('SELECT "commandLines" FROM "Machine" WHERE "id" = %s', (machine_id,))
        (chosen,) = await cursor.fetchone() or (None,)
        return chosen or default

    return of


async def _sample_at(connection: Connection, frame: Held, content: Rows | Event) -> datetime | None:
    """Under which time some of the frame is stored already; None when nothing is."""
    if isinstance(content, Event):
        return None
    times = (frame.receivedAt, content.shared.timestamp)
    cursor = await connection.execute(
        query("quarantine/read_sample_time"),
        {
            "machine_id": frame.machineId,
            "received_at": frame.receivedAt,
            "digest": frame.frameDigest,
            "earliest": min(times) - LOOK_AROUND,
            "latest": max(times) + LOOK_AROUND,
        },
    )
    (at,) = await cursor.fetchone() or (None,)
    return at


async def _kept(connection: Connection, frame: Held, reason: str, detail: str, stored: Rows | None = None) -> Retried:
    refusals = frame.refusals
    if stored is not None:
        refusals = [
            {"table": each.table, "key": escape_to_ascii(each.key), "reason": escape_to_ascii(each.reason)}
            for each in stored.refusals
        ]
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
    return Retried(is_stored=False, why=f"{reason}: {escape_to_ascii(detail)}")
