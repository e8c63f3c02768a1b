"""Where to resume writing: the store's ledger compared with the spool. Pure.

The ledger says up to which sequence number this spool's frames are in the store; the spool says which it still holds.
They disagree after a crash between COMMIT and trim (harmless), after the store was restored from a backup, and
after an older copy of the spool was put back.
"""

from __future__ import annotations

from dataclasses import dataclass


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


def plan_resume(ledger_seq: int | None, *, oldest_seq: int, own_seq: int) -> Resume | Adopt | Rename:
    """What to do about a ledger at `ledger_seq` (None: it does not know this spool).

    `own_seq` is the highest number to which this spool's own daemon can have advanced it.
    """
    trimmed_to = oldest_seq - 1
    if ledger_seq is not None and ledger_seq > own_seq:
        return Rename(own_seq)
    if trimmed_to > (ledger_seq or 0):
        return Adopt(trimmed_to, (ledger_seq or 0) + 1, trimmed_to)
    return Resume(ledger_seq or 0)
