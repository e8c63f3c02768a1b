"""Where to resume writing: the store's ledger compared with the spool. Pure.

The ledger says up to which sequence number this spool's frames are in the store, and who advanced it; the spool says
which frames it still holds, and who it was. They disagree after a crash between COMMIT and trim (harmless), after the
store was restored from a backup, after an older copy of the spool was put back, and when a copy is used by another
guestd.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from uuid import UUID

from guestd.core.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Resume:
    """Continue after `committed_seq`; what the spool holds up to there is stored already."""

    committed_seq: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """The store lacks frames that it once confirmed and that were trimmed: set the ledger, report what is missing."""

    committed_seq: int
    missing_from: int
    missing_to: int


@dataclass(frozen=True, slots=True)
class Rename:
    """The spool is older than the ledger: what it held when opened is stored; continue under a new spool id."""

    committed_seq: int


@dataclass(frozen=True, slots=True)
class Separate:
    """Another guestd advanced the ledger from a copy of this spool, with frames of its own under the same numbers.

    Continue under a new spool id and write again all that is held after `committed_seq`: what is stored already is
    recognised by its digest.
    """

    committed_seq: int


def plan_resume(
    ledger: Ledger | None, *, owners: Set[UUID], oldest_seq: int, own_seq: int, since_seq: int = 0
) -> Resume | Adopt | Rename | Separate:
    """What to do about the ledger (None: it does not know this spool).

    `owners` are those of this file, `own_seq` is the highest number to which this spool's own daemon can have advanced
    the ledger, `since_seq` the last one that was stored under an earlier id.
    """
    trimmed_to = oldest_seq - 1
    if ledger is not None and ledger.owner is not None and ledger.owner not in owners:
        return Separate(trimmed_to)
    if ledger is not None and ledger.committed_seq > own_seq:
        return Rename(own_seq)
    ledger_seq = since_seq if ledger is None else ledger.committed_seq
    if trimmed_to > ledger_seq:
        return Adopt(trimmed_to, ledger_seq + 1, trimmed_to)
    return Resume(ledger_seq)
