"""The spool's file: what is said to SQLite, and what lies beside it. No loop, no limits; see `spool`.

The directory holds the file with its log, a lock that says who has it, and the ballast: room that is given up when the
disk is full, so that what is stored can be deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

import structlog

from guestd.core.errors import ConfigError
from guestd.core.transport import Transport

log = structlog.get_logger()

FILE = "spool.db"
BALLAST_FILE = "ballast"
# A frame fits on few pages then, at two thirds of the work; still larger ones would make each small commit dearer.
_PAGE_BYTES = 16 * 1024
# SQLite's log is moved into the file when it is so long.
_LOG_BYTES = 4 * 1024 * 1024
# Rows in one statement: other threads get the interpreter once for them all, and not once for each.
_ROWS_AT_ONCE = 50
# Enough to move the whole of SQLite's log (what is due, and the largest group commit) into the file.
_BALLAST_BYTES = 16 * 1024 * 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS frame (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    machine_id BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    payload BLOB NOT NULL,
    channel TEXT NOT NULL DEFAULT 'virtio'
) STRICT;
CREATE TABLE IF NOT EXISTS sender (
    machine_id BLOB PRIMARY KEY,
    received_at_ms INTEGER NOT NULL,
    boot_id TEXT,
    seq INTEGER,
    mark TEXT,
    below BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (spool_id TEXT NOT NULL, unsettled_seq INTEGER) STRICT;
"""
_LAST_MS = int(datetime.max.replace(tzinfo=UTC).timestamp()) * 1000
_NOT_OURS = """
SELECT 'frame', seq
FROM frame
WHERE length(machine_id) <> 16 OR received_at_ms NOT BETWEEN 0 AND ? OR channel NOT IN (SELECT value FROM json_each(?))
UNION ALL
SELECT 'the sender', hex(machine_id) FROM sender WHERE length(machine_id) <> 16
LIMIT 1"""
# What files of earlier versions lack. Their frames are from virtio channels, the only ones that there were.
_ADDED = (
    ("frame", "channel", "TEXT NOT NULL DEFAULT 'virtio'"),
    ("sender", "mark", "TEXT"),
    ("sender", "below", "BLOB"),
    ("identity", "unsettled_seq", "INTEGER"),
)
# A frame's share of the file beside its payload: keys, page headers, the sender row.
_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Sender:
    """How far one machine's stream is on disk: the last receive time, and the last line if its lines are numbered.

    `below` tells which lines before the last one are settled, as in `sequence`; -1: all of them.
    """

    received_at_ms: int
    boot_id: str | None
    seq: int | None
    mark: str | None = None
    below: int = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame to append; without a payload only its sender's place is kept (a numbered line that was refused)."""

    machine_id: UUID
    received_at_ms: int
    payload: bytes | None
    boot_id: str | None = None
    seq: int | None = None
    mark: str | None = None
    channel: Transport = Transport.VIRTIO
    below: int = -1

    @property
    def size_bytes(self) -> int:
        """What it will occupy."""
        return len(self.payload) + _OVERHEAD_BYTES if self.payload is not None else 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as the spool gives it back."""

    seq: int
    machine_id: UUID
    received_at: datetime
    payload: bytes
    channel: Transport


def opened_or_begun(directory: Path) -> sqlite3.Connection:
    """Open the file, or begin one; a damaged one is set aside. Raises sqlite3.OperationalError for all but damage."""
    try:
        return _opened(directory / FILE)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as exc:
        aside = directory / f"{FILE}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        log.error("the spool file is damaged and was set aside", file=str(aside), error=str(exc))
        for suffix in ("", "-wal", "-shm"):
            part = directory / (FILE + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        return _opened(directory / FILE)


def from_milliseconds(milliseconds: int) -> datetime:
    """Unix milliseconds as a time, exactly."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)


def locked(directory: Path) -> IO[bytes]:
    """Take the directory, making it where missing; free when closed. Raises ConfigError: another guestd has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = (directory / "lock").open("ab")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"spool.directory {directory}: another guestd is running on it") from None
    except OSError as exc:
        raise ConfigError(f"spool.directory {directory}: {exc.strerror}") from exc
    return lock


def inode(file: Path) -> int | None:
    """What tells a file from another of its name; None when there is none."""
    try:
        return file.stat().st_ino
    except OSError:
        return None


def put_ballast(ballast: Path) -> None:
    """Set room aside on the disk; where there is none now, the next trim tries again."""
    if ballast.exists():
        return
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)
    except OSError:
        ballast.unlink(missing_ok=True)


def set_aside(directory: Path) -> list[Path]:
    """Damaged files that are still there."""
    return sorted(directory.glob(f"{FILE}.damaged-*T??????"))


def connect(file: Path) -> sqlite3.Connection:
    """A connection for one thread at a time; transactions are begun by hand."""
    # Statements are not kept, for SQLite would keep with each a copy of the frames that it wrote last.
    return sqlite3.connect(file, check_same_thread=False, isolation_level=None, cached_statements=0)


def _opened(file: Path) -> sqlite3.Connection:
    connection = connect(file)
    try:
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")  # of a new file; others stay as they are
        connection.execute("PRAGMA journal_mode=WAL")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_BYTES // page_bytes}")
        connection.execute("PRAGMA synchronous=FULL")
        # Debian's SQLite overwrites what it deletes unless told not to: trimming would write as much as it frees,
        # and on a full disk need room for it.
        connection.execute("PRAGMA secure_delete=OFF")
        connection.executescript(_SCHEMA)
        for table, column, definition in _ADDED:
            _add_column(connection, table, column, definition)
        # Both read the whole file, which may be gigabytes, and hold up the start: at the same time.
        with ThreadPoolExecutor(1, thread_name_prefix="spool-check") as beside:
            checking = beside.submit(_check_pages, file)
            _check_values(connection)
            checking.result()
        if connection.execute("SELECT count(*) FROM identity").fetchone() == (0,):
            new_identity(connection, 0)
        _check_identity(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_pages(file: Path) -> None:
    """Raise sqlite3.DatabaseError where the file's pages do not hang together."""
    with closing(connect(file)) as connection:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _check_values(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError where a value is none of ours, though the pages are sound: a bit may have flipped."""
    found = connection.execute(_NOT_OURS, (_LAST_MS, json.dumps([each.value for each in Transport]))).fetchone()
    if found is not None:
        raise sqlite3.DatabaseError("{} {} cannot be read".format(*found))


def _check_identity(connection: sqlite3.Connection) -> None:
    try:
        identity(connection)
    except ValueError as exc:
        raise sqlite3.DatabaseError(f"its id cannot be read: {exc}") from exc


def write_rows(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Run `into` (INSERT or REPLACE, without VALUES) with rows of one length, many in each statement."""
    for place in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[place : place + _ROWS_AT_ONCE]
        row = f"({', '.join('?' * len(some[0]))})"
        connection.execute(f"{into} VALUES {', '.join([row] * len(some))}", list(chain.from_iterable(some)))


def _add_column(connection: sqlite3.Connection, table: str, name: str, definition: str) -> None:
    """A column that files of earlier versions do not have."""
    if name not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")


def new_identity(connection: sqlite3.Connection, stored_seq: int) -> UUID:
    """Give the file another identity, and forget in the same transaction what is stored under the one before."""
    spool_id = uuid4()
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM frame WHERE seq <= ?", (stored_seq,))
        connection.execute("DELETE FROM identity")
        connection.execute("INSERT INTO identity (spool_id) VALUES (?)", (str(spool_id),))
    return spool_id


def identity(connection: sqlite3.Connection) -> UUID:
    """By what the store's ledger knows this file."""
    (spool_id,) = connection.execute("SELECT spool_id FROM identity").fetchone()
    return UUID(spool_id)


def last_issued(connection: sqlite3.Connection) -> int:
    """The highest sequence number ever given out; 0 before the first."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'frame'").fetchone()
    return row[0] if row else 0


def unsettled_seq(connection: sqlite3.Connection, last_seq: int) -> int:
    """The last number issued when the store's ledger was last awaited; remembered until `settle`.

    Frames that are appended meanwhile say nothing of how old this file is: it may be a copy that was put back.
    """
    with connection:
        connection.execute("UPDATE identity SET unsettled_seq = ? WHERE unsettled_seq IS NULL", (last_seq,))
    (seq,) = connection.execute("SELECT unsettled_seq FROM identity").fetchone()
    return int(seq)


def senders(connection: sqlite3.Connection) -> dict[UUID, Sender]:
    """Where each machine's stream stands."""
    rows = connection.execute("SELECT machine_id, received_at_ms, boot_id, seq, mark, below FROM sender")
    return {
        UUID(bytes=machine_id): Sender(received_at_ms, boot_id, seq, mark, _from_bytes(below))
        for machine_id, received_at_ms, boot_id, seq, mark, below in rows
    }


def forget_senders(connection: sqlite3.Connection, machine_ids: Iterable[UUID]) -> None:
    """Forget where these machines' streams stand."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("DELETE FROM sender WHERE machine_id = ?", [(each.bytes,) for each in machine_ids])


def as_bytes(below: int) -> bytes | None:
    """`Sender.below` as the file keeps it."""
    return None if below == -1 else below.to_bytes(below.bit_length() // 8 + 1, signed=True)


def _from_bytes(below: bytes | None) -> int:
    return -1 if below is None else int.from_bytes(below, signed=True)


def sizes(connection: sqlite3.Connection) -> Iterable[tuple[int, UUID, int]]:
    """(seq, machine, bytes) of every frame, in order."""
    rows = connection.execute("SELECT seq, machine_id, length(payload) FROM frame ORDER BY seq")
    # One object a machine: there may be millions of frames.
    machines: dict[bytes, UUID] = {}
    for seq, key, length in rows:
        yield seq, machines.setdefault(key, UUID(bytes=key)), length + _OVERHEAD_BYTES
