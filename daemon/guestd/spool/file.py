"""The spool's file: the statements sent to SQLite, and what lies beside the file. No loop, no limits; see `queue`.

The directory holds the file with its log, a lock that says which process has it, and the reserve file: disk space that
is freed when the disk is full, so that what is stored can be deleted.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO
from uuid import UUID

import structlog

from guestd.core.errors import ConfigError
from guestd.core.transport import Transport
from guestd.spool import identity
from guestd.wire.line import KINDS, UNKNOWN, Line, LineId, read_line

log = structlog.get_logger()

FILE = "spool.db"
# The name on disk is older than the term.
RESERVE_FILE = "ballast"
# In the file's user_version; 0 before it was written there. It is raised only by a change after which an older guestd
# must not use the file: for a new column, kind or transport it need not be.
FORMAT = 1
# A frame fits on few pages then, at two thirds of the work; still larger ones would make each small commit dearer.
_PAGE_BYTES = 16 * 1024
# SQLite's log is moved into the file when it is this long.
_LOG_BYTES = 4 * 1024 * 1024
# Rows in one statement: other threads get the interpreter once for them all, and not once for each.
_ROWS_AT_ONCE = 50
# Enough to move the whole of SQLite's log (what is due, and the largest group commit) into the file.
_RESERVE_BYTES = 16 * 1024 * 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS frame (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    machine_id BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    payload BLOB NOT NULL,
    channel TEXT NOT NULL DEFAULT 'virtio',
    kind TEXT,
    boot_id TEXT,
    line_seq INTEGER,
    mark TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS sender (
    machine_id BLOB PRIMARY KEY,
    received_at_ms INTEGER NOT NULL,
    boot_id TEXT,
    seq INTEGER,
    mark TEXT,
    below BLOB
) STRICT, WITHOUT ROWID;
"""
# Columns that files of earlier versions lack. Their frames came by virtio channels, the only ones at the time; a frame
# without a kind is read again when it leaves the spool, for rewriting gigabytes here would need as much of the disk.
_ADDED = (
    ("frame", "channel", "TEXT NOT NULL DEFAULT 'virtio'"),
    ("frame", "kind", "TEXT"),
    ("frame", "boot_id", "TEXT"),
    ("frame", "line_seq", "INTEGER"),
    ("frame", "mark", "TEXT"),
    ("sender", "mark", "TEXT"),
    ("sender", "below", "BLOB"),
)
_LAST_MS = int(datetime.max.replace(tzinfo=UTC).timestamp()) * 1000
_CHANNELS = {each.value: each for each in Transport}
# The machine of a frame whose own cannot be read.
UNREADABLE_MACHINE = UUID(int=0)
_INSERT_FRAMES = "INSERT INTO frame (seq, machine_id, received_at_ms, payload, channel, kind, boot_id, line_seq, mark)"
_REPLACE_SENDERS = "REPLACE INTO sender (machine_id, received_at_ms, boot_id, seq, mark, below)"
_SELECT_FRAMES = """
SELECT seq, machine_id, received_at_ms, payload, channel, kind, boot_id, line_seq, mark
FROM frame WHERE seq > ? ORDER BY seq LIMIT ?"""
# Of a frame's row beside its payload: its keys, and what a numbered line has more.
_OVERHEAD_BYTES = 64
_NUMBER_BYTES = 64
MOST_OVERHEAD_BYTES = _OVERHEAD_BYTES + _NUMBER_BYTES


@dataclass(frozen=True, slots=True)
class SenderState:
    """How far one machine's stream is on disk: the last receive time, and the last line if its lines are numbered.

    `below` tells which lines before the last one are settled, as in `replay_window`; -1: all of them.
    """

    received_at_ms: int
    boot_id: str | None
    seq: int | None
    mark: str | None = None
    below: int = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """One line to append, and the state of its sender after it.

    Without a payload only the state is stored: a numbered line that was refused.
    """

    machine_id: UUID
    line: Line
    sender: SenderState
    transport: Transport = Transport.VIRTIO
    heavy_rows: int = 0
    """Its work, if it took a turn (`guestd.ingest.turns`)."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its row. The file needs more where rows do not fill its pages (`pages`)."""
        if self.line.payload is None:
            return 0
        return len(self.line.payload) + _OVERHEAD_BYTES + (_NUMBER_BYTES if self.line.header is not None else 0)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as the spool returns it, with what was read of its line when it arrived."""

    seq: int
    machine_id: UUID
    received_at: datetime
    payload: bytes
    transport: Transport
    kind: str
    line_id: LineId | None
    problem: str | None = None
    """Why the frame cannot be stored: a newer guestd wrote it, or a bit flipped. Only its payload is whole then."""


def open_or_create(directory: Path) -> sqlite3.Connection:
    """Open the file or create one; a damaged one is renamed.

    Raises ConfigError for a file of a newer format, and sqlite3.OperationalError for all else but damage.
    """
    try:
        return _open(directory / FILE)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as exc:
        damaged = directory / f"{FILE}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        log.error(
            "spool file damaged, starting a new one; keep the damaged file, its frames may not be stored",
            file=str(damaged), error=str(exc),
        )  # fmt: skip
        for suffix in ("", "-wal", "-shm"):
            part = directory / (FILE + suffix)
            if part.exists():
                part.rename(damaged.with_name(damaged.name + suffix))
        return _open(directory / FILE)


def from_milliseconds(milliseconds: int) -> datetime:
    """Unix milliseconds as a time, exactly."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)


def lock_directory(directory: Path) -> IO[bytes]:
    """Lock the directory, creating it if missing; closing the lock frees it. ConfigError: another guestd has it."""
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


def get_inode(file: Path) -> int | None:
    """The inode, which differs after the file was replaced; None when there is no file."""
    try:
        return file.stat().st_ino
    except OSError:
        return None


def create_reserve_file(reserve_file: Path) -> None:
    """Reserve disk space; where there is none now, the next trim tries again."""
    if reserve_file.exists():
        return
    try:
        with reserve_file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
    except OSError:
        reserve_file.unlink(missing_ok=True)


def list_damaged_files(directory: Path) -> list[Path]:
    """Damaged files that were renamed and are still there."""
    return sorted(directory.glob(f"{FILE}.damaged-*T??????"))


def connect(file: Path) -> sqlite3.Connection:
    """A connection for one thread at a time; transactions are begun by hand."""
    # Statements are not cached, for SQLite would keep with each a copy of the frames that it wrote last.
    return sqlite3.connect(file, check_same_thread=False, isolation_level=None, cached_statements=0)


def _open(file: Path) -> sqlite3.Connection:
    connection = connect(file)
    try:
        version = _check_format(connection, file)
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")  # of a new file; others stay as they are
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_BYTES // read_page_bytes(connection)}")
        connection.execute("PRAGMA synchronous=FULL")
        # Debian's SQLite overwrites what it deletes unless told not to: trimming would write as much as it frees,
        # and on a full disk need room for it.
        connection.execute("PRAGMA secure_delete=OFF")
        connection.executescript(_SCHEMA + identity.SCHEMA)
        for table, column, definition in _ADDED + identity.ADDED:
            _add_column(connection, table, column, definition)
        if version != FORMAT:
            connection.execute(f"PRAGMA user_version={FORMAT}")
        _check_pages(connection)
        identity.ensure_identity(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_format(connection: sqlite3.Connection, file: Path) -> int:
    """The file's format. Raises ConfigError for one that this version must not use; the file is left as it is."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise ConfigError(
            f"spool.directory: {file} has format {version}, of a newer guestd; this one knows formats up to {FORMAT}: "
            "install the newer guestd again. To go back to this one, let the newer one store everything first "
            "(guestd_spool_frames is 0), stop it, and move the file away"
        )
    return int(version)


def _check_pages(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError where the file's pages are inconsistent."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _add_column(connection: sqlite3.Connection, table: str, name: str, definition: str) -> None:
    """Add a column that files of earlier versions do not have."""
    if name not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")


def insert_frames(connection: sqlite3.Connection, entries: Sequence[Entry], first_seq: int) -> None:
    """Append the frames of entries, numbered from `first_seq`."""
    rows = [
        (
            seq, entry.machine_id.bytes, entry.sender.received_at_ms, entry.line.payload, entry.transport.value,
            entry.line.kind, *_numbering(entry.line),
        )
        for seq, entry in enumerate(entries, first_seq)
    ]  # fmt: skip
    _write_rows(connection, _INSERT_FRAMES, rows)


def _numbering(line: Line) -> tuple[str | None, int | None, str | None]:
    header = line.header
    return (None, None, None) if header is None else (header.boot_id, header.seq, header.mark)


def read_frames(connection: sqlite3.Connection, after_seq: int, *, max_frames: int, max_bytes: int) -> list[Frame]:
    """The next frames after `after_seq`, in order, at least one if there is any."""
    rows = connection.execute(_SELECT_FRAMES, (after_seq, max_frames))
    frames: list[Frame] = []
    total_bytes = 0
    for row in rows:
        frame = _read_frame(*row)
        total_bytes += len(frame.payload)
        if frames and total_bytes > max_bytes:
            break
        frames.append(frame)
    rows.close()
    if broken := [frame for frame in frames if frame.problem is not None]:
        log.error(
            "frames of the spool cannot be read, quarantining them; did a newer guestd write them, or is the disk bad?",
            frames=len(broken), seq=broken[0].seq, problem=broken[0].problem,
        )  # fmt: skip
    return frames


def _read_frame(
    seq: int,
    key: bytes,
    received_at_ms: int,
    payload: bytes,
    channel: str,
    known_kind: str | None,
    boot_id: str | None,
    line_seq: int | None,
    mark: str | None,
) -> Frame:
    """A row as a frame; one with a value that this version does not know or that cannot be has a `problem`."""
    kind, line_id = _line_of(payload, known_kind, boot_id, line_seq, mark)
    problem = None
    if kind not in KINDS:
        kind, problem = UNKNOWN, f"kind {kind!r} is unknown to this guestd"
    if channel not in _CHANNELS:
        problem = f"transport {channel!r} is unknown to this guestd"
    if len(key) != len(UNREADABLE_MACHINE.bytes):
        problem = f"{key.hex()!r} is no machine"
    if not 0 <= received_at_ms <= _LAST_MS:
        problem = f"{received_at_ms} is no time of receipt"
        received_at_ms = time.time_ns() // 1_000_000
    if (boot_id is None) != (line_seq is None):
        problem = f"half of the number of a line: {boot_id!r}, {line_seq!r}"
    return Frame(
        seq,
        _machine_of(key),
        from_milliseconds(received_at_ms),
        payload,
        _CHANNELS.get(channel, Transport.VIRTIO),
        kind,
        line_id if problem is None else None,
        problem,
    )


def _machine_of(key: bytes) -> UUID:
    return UUID(bytes=key) if len(key) == len(UNREADABLE_MACHINE.bytes) else UNREADABLE_MACHINE


def _line_of(
    payload: bytes, kind: str | None, boot_id: str | None, line_seq: int | None, mark: str | None
) -> tuple[str, LineId | None]:
    if kind is None:
        # Appended by an earlier version.
        line = read_line(payload)
        return line.kind, line.line_id
    return kind, None if boot_id is None or line_seq is None else LineId(boot_id, line_seq, mark)


def delete_frames(connection: sqlite3.Connection, up_to_seq: int) -> None:
    """Delete frames up to a number."""
    connection.execute("DELETE FROM frame WHERE seq <= ?", (up_to_seq,))


def has_frames(connection: sqlite3.Connection) -> bool:
    """Whether there is a frame in the file."""
    (exists,) = connection.execute("SELECT EXISTS (SELECT 1 FROM frame)").fetchone()
    return bool(exists)


def replace_senders(connection: sqlite3.Connection, senders: Mapping[UUID, SenderState]) -> None:
    """Store the states of these machines' streams."""
    rows = [
        (key.bytes, each.received_at_ms, each.boot_id, each.seq, each.mark, _to_bytes(each.below))
        for key, each in senders.items()
    ]
    _write_rows(connection, _REPLACE_SENDERS, rows)


def _write_rows(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Run `into` (INSERT or REPLACE, without VALUES) with rows of one length, many in each statement."""
    for place in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[place : place + _ROWS_AT_ONCE]
        row = f"({', '.join('?' * len(some[0]))})"
        connection.execute(f"{into} VALUES {', '.join([row] * len(some))}", list(chain.from_iterable(some)))


def read_senders(connection: sqlite3.Connection) -> dict[UUID, SenderState]:
    """The state of each machine's stream.

    One that cannot be read is left out: its machine's next line is then the first of a run, and the store recognises
    what it has of it.
    """
    senders, unreadable = dict[UUID, SenderState](), 0
    rows = connection.execute("SELECT machine_id, received_at_ms, boot_id, seq, mark, below FROM sender")
    for key, received_at_ms, boot_id, seq, mark, below in rows:
        is_number = (boot_id is None) == (seq is None) and (seq is None or seq > 0)
        is_time = 0 <= received_at_ms <= _LAST_MS
        if _machine_of(key) == UNREADABLE_MACHINE or not is_number or not is_time:
            unreadable += 1
        else:
            senders[UUID(bytes=key)] = SenderState(received_at_ms, boot_id, seq, mark, _from_bytes(below))
    if unreadable:
        log.error("states of senders in the spool cannot be read, ignoring them; check the disk", senders=unreadable)
    return senders


def delete_senders(connection: sqlite3.Connection, machine_ids: Iterable[UUID]) -> None:
    """Delete the states of these machines' streams."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("DELETE FROM sender WHERE machine_id = ?", [(each.bytes,) for each in machine_ids])


def _to_bytes(below: int) -> bytes | None:
    """`SenderState.below` as the file stores it."""
    return None if below == -1 else below.to_bytes(below.bit_length() // 8 + 1, signed=True)


def _from_bytes(below: bytes | None) -> int:
    return -1 if below is None else int.from_bytes(below, signed=True)


def read_sizes(connection: sqlite3.Connection) -> Iterable[tuple[int, UUID, int]]:
    """(seq, machine, bytes as `Entry.size_bytes` counts them) of every frame, in order."""
    # length() and typeof() of a value need its size only: IS NOT NULL reads the payload before it from the disk.
    sizes = "SELECT seq, machine_id, length(payload), typeof(boot_id) <> 'null' FROM frame ORDER BY seq"
    rows = connection.execute(sizes)
    # One object a machine: there may be millions of frames.
    machines: dict[bytes, UUID] = {}
    for seq, key, length, is_numbered in rows:
        row_bytes = length + _OVERHEAD_BYTES + is_numbered * _NUMBER_BYTES
        yield seq, machines.setdefault(key, _machine_of(key)), row_bytes


def read_page_bytes(connection: sqlite3.Connection) -> int:
    """The size of the file's pages."""
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    return int(page_bytes)
