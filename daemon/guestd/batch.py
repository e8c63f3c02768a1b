"""What is written in one transaction: when it is due, and how it is halved when the store refuses it. Pure."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from guestd.errors import BadFrame
from guestd.normalise import Rows


@dataclass(frozen=True, slots=True)
class Prepared:
    """One frame, ready for the store: its rows, or why it has none."""

    seq: int
    machine_id: UUID
    received_at: datetime
    payload: bytes
    content: Rows | BadFrame


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is due: whichever comes first."""

    max_frames: int
    max_bytes: int
    max_age_seconds: float


def is_due(waiting_bytes: int, waited_seconds: float, limits: Limits) -> bool:
    """Whether to write now what waits, or to let it grow."""
    return waiting_bytes >= limits.max_bytes or waited_seconds >= limits.max_age_seconds


def halves(frames: Sequence[Prepared]) -> tuple[Sequence[Prepared], Sequence[Prepared]]:
    """Two parts in order, the first never empty; together they are the batch."""
    middle = (len(frames) + 1) // 2
    return frames[:middle], frames[middle:]


Moment = tuple[UUID, datetime]
_MILLISECOND = timedelta(milliseconds=1)


def placed(wanted: Sequence[Moment], taken: Set[Moment]) -> list[Moment]:
    """The (machine, time) that each frame's rows get: as wanted, or moved by whole ms past others."""
    used = set(taken)
    # Where the search for a free moment goes on, so that a guest that repeats one time for ever costs no more.
    resume_at: dict[Moment, datetime] = {}
    moments = []
    for machine_id, wish in wanted:
        moment = resume_at.get((machine_id, wish), wish)
        while (machine_id, moment) in used:
            moment += _MILLISECOND
        used.add((machine_id, moment))
        resume_at[(machine_id, wish)] = moment + _MILLISECOND
        moments.append((machine_id, moment))
    return moments
