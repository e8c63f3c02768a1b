"""The store's driver: one connection that writes batches.

A batch is one transaction: the ledger is advanced by compare-and-set, the batch's machines are locked as a foreign key
would, frames that are already stored are left out, rows are written with binary COPY, inventories are merged, and
frames that cannot be stored are quarantined. Errors are StoreUnavailable (keep the rows), RowsRejected (never try these
rows again) or SchemaMismatch.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from guestd.core.errors import BadFrame, RowsRejected, StoreUnavailable
from guestd.core.ledger import Ledger
from guestd.core.text import escape_to_ascii
from guestd.rows import redact
from guestd.rows.batch import Prepared
from guestd.rows.model import KEYED, Rows, StoredKey
from guestd.store import dumpers
from guestd.store.connection import WRITE_SECONDS, check_schema, connection_to, store_deadline
from guestd.store.copy import write_rows
from guestd.wire import limits
from guestd.wire.decode import Refusal
from guestd.wire.events import Event
from gueststore import contract
from gueststore.queries import query

LANE = 0
# A frame that is sent again is searched among the samples this long before and after its time: a line may wait so long
# in an agent's buffer or a broker's queue. A chunk of SystemMetrics is as long, so three chunks are searched.
SEARCH_WINDOW = timedelta(days=7)
# queries/ingest/merge_*.sql update lastSeen of an otherwise unchanged row no sooner. Programs in use report with every
# message when they were used last; stored as often, and with each sample in ApplicationUsageHistory's "isActive".
REFRESH_AFTER = timedelta(minutes=1)
_description = attrgetter(*(name for name in contract.IncomingApplication._fields if name != "lastAccessTime"))


@dataclass(slots=True)
class Outcome:
    """What happened to the frames of a batch, the rows written by table, and how long their COPY took."""

    stored: int = 0
    stored_in_part: int = 0
    duplicate: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    """Inventory rows beyond the limit of a machine."""
    changes_left_out: int = 0
    """Changes of services that are not in the history: beyond the limit of a machine."""
    quarantined_bytes: int = 0
    copy_seconds: float = 0.0
    seconds: float = 0.0
    """How long the transaction took."""
    machine_ids: frozenset[UUID] = frozenset()
    """Machines of the frames."""
    dialects: dict[UUID, str] = field(default_factory=dict)
    """Dialects of agents, where they changed."""
    inventories: dict[UUID, _Inventory] = field(default_factory=dict)
    """Machines whose inventories were merged."""
    merged: Counter[UUID] = field(default_factory=Counter)
    """Entries of these inventories."""


@dataclass(frozen=True, slots=True)
class _Inventory:
    """The last inventories of a machine that were merged: their hash, and when they were received."""

    content: int
    received_at: datetime

    def covers(self, other: _Inventory) -> bool:
        """Whether another one need not be merged: the same, and not so much later that lastSeen must be updated."""
        return self.content == other.content and timedelta() <= other.received_at - self.received_at <= REFRESH_AFTER


class LedgerMoved(StoreUnavailable):
    """The ledger is not at the expected position: a commit whose reply was lost, or another writer. Read it again."""


class Store:
    """Writes the batches of one spool; not for concurrent use. Open with `open_store`.

    Raises NoReply for a batch, or what is read for it, that takes longer than `write_seconds`.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], write_seconds: float) -> None:
        self._connection = connection
        self._write_seconds = write_seconds
        # What this connection has written: unchanged values are not written again.
        self._dialects: dict[UUID, str] = {}
        self._inventories: dict[UUID, _Inventory] = {}

    async def read_ledger(self, spool_id: UUID) -> Ledger | None:
        """How far a spool's frames are stored; None when the store does not know the spool."""
        async with store_deadline(WRITE_SECONDS):
            cursor = await self._connection.execute(query("ingest/read_ledger"), {"spool_id": spool_id, "lane": LANE})
            row = await cursor.fetchone()
        return None if row is None else Ledger(*row)

    async def set_ledger(self, spool_id: UUID, expected: Ledger | None, new: Ledger) -> None:
        """Open the ledger of a spool (expected None), or advance it without rows. LedgerMoved: it is elsewhere."""
        async with store_deadline(WRITE_SECONDS):
            if expected is not None:
                await self._advance(spool_id, expected, new)
                return
            position = {"spool_id": spool_id, "lane": LANE, "committed_seq": new.committed_seq, "owner": new.owner}
            cursor = await self._connection.execute(query("ingest/insert_ledger"), position)
            if cursor.rowcount != 1:
                raise LedgerMoved(f"another guestd has opened the ledger of spool {spool_id}")

    async def find_stored_timestamps(self, moments: Sequence[tuple[UUID, datetime]]) -> set[tuple[UUID, datetime]]:
        """Those of these (machine, timestamp) that already have a sample."""
        machine_ids, timestamps = zip(*moments, strict=True)
        async with store_deadline(self._write_seconds):
            cursor = await self._connection.execute(
                query("ingest/read_stored_timestamps"),
                {"machine_ids": list(machine_ids), "timestamps": list(timestamps)},
            )
            return {(machine_id, timestamp) for machine_id, timestamp in await cursor.fetchall()}

    async def find_sample_times(self, frames: Sequence[tuple[UUID, int, datetime]]) -> dict[tuple[UUID, int], datetime]:
        """The timestamps of samples by machine and frame digest.

        All are searched from SEARCH_WINDOW before the earliest of the given times to SEARCH_WINDOW after the latest.
        """
        machine_ids, digests, times = zip(*frames, strict=True)
        window = {"earliest": min(times) - SEARCH_WINDOW, "latest": max(times) + SEARCH_WINDOW}
        async with store_deadline(self._write_seconds):
            cursor = await self._connection.execute(
                query("ingest/read_sample_times"),
                {"machine_ids": list(machine_ids), "digests": list(digests), **window},
            )
            return {(machine_id, digest): at for machine_id, digest, at in await cursor.fetchall()}

    async def without_stored(self, frames: Sequence[Prepared]) -> list[Prepared]:
        """The same frames without the rows whose keys are stored already, which become refusals."""
        with_rows = [(frame, frame.content) for frame in frames if isinstance(frame.content, Rows)]
        if not with_rows:
            return list(frames)
        async with store_deadline(self._write_seconds):
            stored = await self._read_stored_keys([rows for _, rows in with_rows])
        contents = {}
        for frame, rows in with_rows:
            left, refusals = rows.without_stored(stored)
            contents[frame.seq] = replace(left, refusals=[*rows.refusals, *refusals])
        return [replace(frame, content=contents.get(frame.seq, frame.content)) for frame in frames]

    async def write(self, spool_id: UUID, expected: Ledger, frames: Sequence[Prepared]) -> Outcome:
        """Store a batch and advance the ledger to its last frame, or change nothing at all. LedgerMoved: as above."""
        started = time.perf_counter()
        async with store_deadline(self._write_seconds), self._connection.transaction():
            outcome = await self._write(spool_id, expected, frames)
        outcome.seconds = time.perf_counter() - started
        self._dialects |= outcome.dialects
        self._inventories |= outcome.inventories
        return outcome

    async def try_write(self, spool_id: UUID, expected: Ledger, frames: Sequence[Prepared]) -> None:
        """Store a batch as `write` does and undo it: raises what `write` would raise."""
        async with store_deadline(self._write_seconds), self._connection.transaction(force_rollback=True):
            await self._write(spool_id, expected, frames)

    async def store_missing(self, content: Rows | Event, *, sample_at: datetime | None) -> bool:
        """Store the rows of a frame that are not stored yet; its sample is stored at `sample_at` if that is given.

        Runs in the caller's transaction. Returns False, and changes nothing, when the machine does not exist.
        """
        machine_id = content.machine_id if isinstance(content, Event) else content.shared.machine_id
        if not await self._lock_machines({machine_id}):
            return False
        outcome = Outcome()
        if isinstance(content, Event):
            await self._insert_events([content], outcome)
            return True
        rows = (
            content if sample_at is None else await self._with_missing_ports(content.with_shared(timestamp=sample_at))
        )
        left, _ = rows.without_stored(await self._read_stored_keys([rows]))
        tables: Sequence[contract.Table] = contract.SERIES
        if sample_at is not None:
            tables = KEYED
            # Otherwise the trigger on SystemMetrics records this for the roll-ups.
            await self._connection.execute(
                query("ingest/insert_pending_rollup"), {"machine_id": machine_id, "at": sample_at}
            )
        await self._copy_series(tables, [left], outcome)
        await self._merge_inventories([left], outcome)
        return True

    async def _read_stored_keys(self, contents: Sequence[Rows]) -> set[StoredKey]:
        async with self._connection.cursor(row_factory=class_row(StoredKey)) as cursor:
            await cursor.execute(query("ingest/read_stored_rows"), _keys(contents))
            return set(await cursor.fetchall())

    async def _with_missing_ports(self, rows: Rows) -> Rows:
        """The same rows with only the ports that are not stored for the sample, numbered behind the stored ones.

        A port's ordinal is its position among the ports that were not refused, and that may differ today.
        """
        sample = {"machine_id": rows.shared.machine_id, "at": rows.shared.timestamp}
        cursor = await self._connection.execute(query("ingest/read_ports"), sample)
        # Behind the ordinal the query names what tells one port from another.
        _, *identity = [column.name for column in cursor.description or ()]
        stored = {tuple(port): ordinal async for ordinal, *port in cursor}
        identity_of = attrgetter(*identity)
        behind = max(stored.values(), default=-1) + 1
        new = [row for row in rows.ports if identity_of(row) not in stored]
        return replace(rows, ports=[row._replace(ordinal=ordinal) for ordinal, row in enumerate(new, behind)])

    async def _write(self, spool_id: UUID, expected: Ledger, frames: Sequence[Prepared]) -> Outcome:
        outcome = Outcome()
        await self._advance(spool_id, expected, Ledger(frames[-1].seq, expected.owner))
        outcome.machine_ids = frozenset(frame.machine_id for frame in frames)
        known = await self._lock_machines(outcome.machine_ids)
        await self._lock_against_other_hosts(frames, known)
        contents: list[Rows] = []
        reported: list[Event] = []
        for frame in await self._drop_duplicates(frames, outcome):
            content = frame.content
            if isinstance(content, Rows) and frame.machine_id in known:
                contents.append(content)
                if content.refusals:
                    outcome.stored_in_part += 1
                    if await self._quarantine(spool_id, frame, "row_refused", summarise_refusals(content.refusals)):
                        outcome.quarantined_bytes += len(frame.payload)
                else:
                    outcome.stored += 1
            elif isinstance(content, Event) and frame.machine_id in known:
                reported.append(content)
            else:
                await self._quarantine_frame(spool_id, frame, outcome)
        await self._copy_series(contract.SERIES, contents, outcome)
        await self._merge_inventories(contents, outcome)
        await self._insert_events(reported, outcome)
        await self._upsert_dialects(contents, outcome)
        return outcome

    async def _upsert_dialects(self, contents: Sequence[Rows], outcome: Outcome) -> None:
        dialects = {rows.shared.machine_id: rows.dialect for rows in contents}
        new = {machine_id: each for machine_id, each in dialects.items() if self._dialects.get(machine_id) != each}
        if new:
            await self._connection.execute(query("ingest/upsert_dialects"), _by_machine(new))
        outcome.dialects = new

    async def _drop_duplicates(self, frames: Sequence[Prepared], outcome: Outcome) -> list[Prepared]:
        """The frames that are not stored yet, each once; counts the others as duplicates."""
        named = [(frame.machine_id, frame.digest) for frame in frames if frame.digest is not None]
        if not named:
            return list(frames)
        machine_ids, digests = zip(*named, strict=True)
        times = [moment for frame in frames for moment in frame.times]
        window = {"earliest": min(times) - SEARCH_WINDOW, "latest": max(times) + SEARCH_WINDOW}
        cursor = await self._connection.execute(
            query("ingest/read_stored_frames"), {"machine_ids": list(machine_ids), "digests": list(digests), **window}
        )
        stored = set(await cursor.fetchall())
        new = []
        for frame in frames:
            name = (frame.machine_id, frame.digest)
            if name in stored:
                outcome.duplicate += 1
                continue
            if frame.digest is not None:
                stored.add(name)
            new.append(frame)
        return new

    async def _quarantine_frame(self, spool_id: UUID, frame: Prepared, outcome: Outcome) -> None:
        content = frame.content
        reason, detail = "unknown_machine", "the store has no such Machine"
        if isinstance(content, BadFrame):
            reason, detail = content.reason, str(content)
        if await self._quarantine(spool_id, frame, reason, detail):
            outcome.quarantined[reason] += 1
            outcome.quarantined_bytes += len(frame.payload)
        else:
            outcome.duplicate += 1

    async def _advance(self, spool_id: UUID, expected: Ledger, new: Ledger) -> None:
        position = {
            "spool_id": spool_id,
            "lane": LANE,
            "expected_seq": expected.committed_seq,
            "expected_owner": expected.owner,
            "committed_seq": new.committed_seq,
            "owner": new.owner,
        }
        cursor = await self._connection.execute(query("ingest/advance_ledger"), position)
        if cursor.rowcount != 1:
            raise LedgerMoved(f"the ledger of spool {spool_id} is not at {expected.committed_seq} of this guestd")

    async def _lock_machines(self, machine_ids: Collection[UUID]) -> set[UUID]:
        cursor = await self._connection.execute(query("ingest/lock_machines"), {"ids": list(machine_ids)})
        return {machine_id for (machine_id,) in await cursor.fetchall()}

    async def _lock_against_other_hosts(self, frames: Sequence[Prepared], known: set[UUID]) -> None:
        """Lock machines with samples at a time of this host: only for others do equal lines of two hosts conflict.

        With them those whose dialect is written later: a transaction locks all agents in one order, before other rows.
        """
        dialects = {}
        for frame in frames:
            if not isinstance(frame.content, Rows) or frame.machine_id not in known:
                continue
            if frame.has_hosts_time or self._dialects.get(frame.machine_id) != frame.content.dialect:
                dialects[frame.machine_id] = frame.content.dialect
        if dialects:
            await self._connection.execute(query("ingest/lock_agents"), _by_machine(dialects))

    async def _copy_series(self, tables: Sequence[contract.Table], contents: Sequence[Rows], outcome: Outcome) -> None:
        started = time.perf_counter()
        for table in tables:
            outcome.rows[table.name] += await self._copy(table, contents)
        outcome.copy_seconds += time.perf_counter() - started

    async def _merge_inventories(self, contents: Sequence[Rows], outcome: Outcome) -> None:
        news = self._changed(contents, outcome)
        copied = await self._copy(contract.INCOMING_APPLICATION, news)
        outcome.rows["ApplicationUsage"] += copied
        if copied:
            cursor = await self._connection.execute(query("ingest/limit_applications"), {"most": limits.INVENTORY})
            outcome.left_out += cursor.rowcount
            await self._connection.execute(query("ingest/merge_applications"))
        copied = await self._copy(contract.INCOMING_SERVICE, news)
        outcome.rows["WindowsService"] += copied
        if copied:
            cursor = await self._connection.execute(query("ingest/limit_services"), {"most": limits.INVENTORY})
            outcome.left_out += cursor.rowcount
            await self._connection.execute(query("ingest/lock_services"))
            cursor = await self._connection.execute(
                query("ingest/merge_services"), {"history_per_day": limits.HISTORY_PER_DAY}
            )
            ((outcome.changes_left_out,),) = await cursor.fetchall()

    def _changed(self, contents: Sequence[Rows], outcome: Outcome) -> list[Rows]:
        """The rows whose inventories differ from the last that were merged of their machine; most do not."""
        changed = []
        for rows in contents:
            if not rows.applications and not rows.services:
                continue
            machine_id = rows.shared.machine_id
            inventory = _Inventory(_inventory_hash(rows), rows.shared.received_at)
            last = outcome.inventories.get(machine_id) or self._inventories.get(machine_id)
            if last is None or not last.covers(inventory):
                outcome.inventories[machine_id] = inventory
                outcome.merged[machine_id] += len(rows.applications) + len(rows.services)
                changed.append(rows)
        return changed

    async def _insert_events(self, reported: Sequence[Event], outcome: Outcome) -> None:
        """Events are few, and identified by their ids: one that is stored already is a duplicate."""
        if not reported:
            return
        cursor = await self._connection.execute(
            query("ingest/insert_guest_events"),
            {
                "ids": [event.id for event in reported],
                "machine_ids": [event.machine_id for event in reported],
                "received_ats": [event.received_at for event in reported],
                "types": [event.type for event in reported],
                "severities": [event.severity for event in reported],
                "messages": [event.message for event in reported],
                "details": [event.detail for event in reported],
            },
        )
        outcome.stored += cursor.rowcount
        outcome.duplicate += len(reported) - cursor.rowcount
        outcome.rows["GuestEvent"] += cursor.rowcount

    async def _copy(self, table: contract.Table, contents: Sequence[Rows]) -> int:
        """The rows of a table, and how many there were."""
        groups = [group for rows in contents if (group := rows.group(table)).rows]
        if not groups:
            return 0
        statement = f'COPY "{table.name}" ({table.column_list}) FROM STDIN (FORMAT BINARY)'
        async with self._connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            try:
                await write_rows(copy, table, groups)
            except (OverflowError, TypeError, UnicodeError, struct.error) as exc:
                # A value does not fit the type of its column.
                raise RowsRejected(f"{table.name}: {type(exc).__name__}: {exc}") from exc
        return sum(len(group.rows) for group in groups)

    async def _quarantine(self, spool_id: UUID, frame: Prepared, reason: str, detail: str) -> bool:
        """Insert into the quarantine; False when the frame was there already."""
        refusals = frame.content.refusals if isinstance(frame.content, Rows) else []
        cursor = await self._connection.execute(
            query("ingest/insert_quarantined_frame"),
            {
                "machine_id": frame.machine_id,
                "received_at": frame.received_at,
                "spool_id": spool_id,
                "seq": frame.seq,
                "reason": reason,
                "detail": escape_to_ascii(detail),
                "refusals": Jsonb(describe_refusals(refusals)),
                "stored": isinstance(frame.content, Rows) and reason == "row_refused",
                "payload": redact.redact_frame(frame.payload, frame.command_lines),
                "digest": frame.digest,
            },
        )
        return cursor.rowcount == 1


def _by_machine(dialects: Mapping[UUID, str]) -> dict[str, list[Any]]:
    """The dialects of agents as parameters, in the same order for every writer: two hosts may store one machine's."""
    machine_ids = sorted(dialects)
    return {"machine_ids": machine_ids, "dialects": [dialects[each] for each in machine_ids]}


def summarise_refusals(refusals: Sequence[Refusal]) -> str:
    """The number of refused rows and the first of them, for QuarantinedFrame.detail; at least one is given."""
    first = refusals[0]
    name = first.table if first.key is None else f"{first.table} {first.key}"
    number = "1 row refused" if len(refusals) == 1 else f"{len(refusals)} rows refused, the first"
    return f"{number}: {name}: {first.reason}"


def describe_refusals(refusals: Sequence[Refusal]) -> list[dict[str, str | None]]:
    """Refused rows as QuarantinedFrame.refusals has them; the key of a row without one is null."""
    return [
        {
            "table": each.table,
            "key": None if each.key is None else escape_to_ascii(each.key),
            "reason": escape_to_ascii(each.reason),
        }
        for each in refusals
    ]


def _inventory_hash(rows: Rows) -> int:
    """The hash of a message's inventories; not of when they came, nor of when programs were used last."""
    return hash((tuple(map(_description, rows.applications)), tuple(rows.services)))


def _keys(contents: Sequence[Rows]) -> dict[str, object]:
    """The keys of rows as queries/ingest/read_stored_rows.sql takes them."""
    times = [rows.shared.timestamp for rows in contents]
    keys: dict[str, object] = {"earliest": min(times), "latest": max(times)}
    for name, table in zip(("process", "port", "application"), KEYED, strict=True):
        series = [(rows.shared, table.key_of(row)) for rows in contents for row in rows.group(table).rows]
        keys[f"{name}_machines"] = [shared.machine_id for shared, _ in series]
        keys[f"{name}_times"] = [shared.timestamp for shared, _ in series]
        keys[f"{name}_keys"] = [key for _, key in series]
    return keys


@asynccontextmanager
async def open_store(dsn: str, write_seconds: float = WRITE_SECONDS) -> AsyncIterator[Store]:
    """A store on a new connection, with its schema checked, ready for `write`."""
    async with connection_to(dsn) as connection:
        yield await open_store_on(connection, write_seconds)


async def open_store_on(connection: psycopg.AsyncConnection[Any], write_seconds: float = WRITE_SECONDS) -> Store:
    """The same on the caller's connection."""
    await check_schema(connection)
    async with store_deadline(WRITE_SECONDS):
        dumpers.register_dumpers(connection)
        await connection.execute(query("ingest/create_incoming"))
    return Store(connection, write_seconds)
