"""Who a spool file is to the store's ledger: its id, and the owners under which it advanced the ledger.

A copy of a file has the same id. So each process that opens a file makes an owner of its own, writes it into the file
and then into the ledger: of two copies that are used, the one that comes second finds an owner that its file does not
know. Owners of before stay in the file, for a store that is restored from a backup has one of these again.
"""

from __future__ import annotations

import sqlite3
from uuid import UUID, uuid4

import structlog

log = structlog.get_logger()

SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (
    spool_id TEXT NOT NULL, unsettled_seq INTEGER, since_seq INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS owner (number INTEGER PRIMARY KEY, owner TEXT NOT NULL) STRICT;
"""
# Columns that files of earlier versions lack.
ADDED = (
    ("identity", "unsettled_seq", "INTEGER"),
    ("identity", "since_seq", "INTEGER NOT NULL DEFAULT 0"),
)
# One for each start of guestd. A store that was restored from before these looks like another's.
_MOST_OWNERS = 1000


def ensure_identity(connection: sqlite3.Connection) -> None:
    """Give a file an id that has none, or none that can be read: the store recognises the frames that it has."""
    try:
        read_identity(connection)
    except (TypeError, ValueError) as exc:
        (first_seq,) = connection.execute("SELECT min(seq) FROM frame").fetchone()
        last_seq = read_last_seq(connection)
        replace_identity(connection, stored_seq=0, since_seq=(first_seq or last_seq + 1) - 1)
        if last_seq:
            log.error(
                "spool id cannot be read, continuing under a new one; all frames of the file are written again, and "
                "those that are stored are left out; check the disk",
                error=str(exc),
            )  # fmt: skip


def read_identity(connection: sqlite3.Connection) -> UUID:
    """The id by which the store's ledger knows this file."""
    (spool_id,) = connection.execute("SELECT spool_id FROM identity").fetchone()
    return UUID(spool_id)


def read_since_seq(connection: sqlite3.Connection) -> int:
    """The last sequence number that was issued and stored under an earlier id."""
    (since_seq,) = connection.execute("SELECT since_seq FROM identity").fetchone()
    return int(since_seq)


def replace_identity(
    connection: sqlite3.Connection, *, stored_seq: int, since_seq: int, owner: UUID | None = None
) -> UUID:
    """Give the file a new id, and in the same transaction delete what is stored under the id before."""
    spool_id = uuid4()
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM frame WHERE seq <= ?", (stored_seq,))
        connection.execute("DELETE FROM identity")
        connection.execute("DELETE FROM owner")
        connection.execute("INSERT INTO identity (spool_id, since_seq) VALUES (?, ?)", (str(spool_id), since_seq))
        if owner is not None:
            connection.execute("INSERT INTO owner (owner) VALUES (?)", (str(owner),))
    return spool_id


def add_owner(connection: sqlite3.Connection, owner: UUID) -> None:
    """Record an owner, before it may stand in the ledger."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO owner (owner) VALUES (?)", (str(owner),))
        connection.execute("DELETE FROM owner WHERE number <= (SELECT max(number) FROM owner) - ?", (_MOST_OWNERS,))


def read_owners(connection: sqlite3.Connection) -> set[UUID]:
    """The owners under which this file, or the file of which it is a copy, may have advanced the ledger."""
    owners = set()
    for (owner,) in connection.execute("SELECT owner FROM owner"):
        try:
            owners.add(UUID(owner))
        except ValueError:
            # At worst the ledger's: then the file takes a new id, and loses nothing.
            log.error("owner in the spool file cannot be read, ignoring it; check the disk", owner=owner)
    return owners


def read_last_seq(connection: sqlite3.Connection) -> int:
    """The highest sequence number ever issued; 0 before the first."""
    issued = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'frame'").fetchone()
    (held,) = connection.execute("SELECT max(seq) FROM frame").fetchone()
    return max(issued[0] if issued else 0, held or 0)


def mark_unsettled(connection: sqlite3.Connection, last_seq: int) -> int:
    """Record the last number issued until `clear_unsettled`, unless one is recorded; returns what is recorded.

    Frames that are appended meanwhile do not tell how old this file is: it may be a copy that was put back.
    """
    with connection:
        connection.execute("UPDATE identity SET unsettled_seq = ? WHERE unsettled_seq IS NULL", (last_seq,))
    (seq,) = connection.execute("SELECT unsettled_seq FROM identity").fetchone()
    return min(int(seq), last_seq)


def clear_unsettled(connection: sqlite3.Connection) -> None:
    """The store's ledger and this file agree."""
    connection.execute("UPDATE identity SET unsettled_seq = NULL")
