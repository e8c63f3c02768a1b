"""How far a spool is stored, as its row of the store's ledger says."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Ledger:
    """The last committed sequence number, and which opening of a spool file advanced it (None: an older guestd)."""

    committed_seq: int
    owner: UUID | None = None
