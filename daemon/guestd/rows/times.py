"""Timestamps: as guests write them, of a sample in the store, and in the ids of rows. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from guestd.core.transport import Transport

# A guest's own time is used when it is this near to the time of receipt.
CLOCK_TOLERANCE = timedelta(minutes=5)
# A message may have waited this long in a broker's queue, a numbered line in its agent's buffer. Shorter than the
# retention of raw samples, which drops older ones; and a guest must not be able to create chunks over a wide range.
QUEUE_TIME = timedelta(days=7)
# By MQTT its time cannot be in the future.
BROKER_CLOCK_TOLERANCE = timedelta(seconds=60)


def guest_time(claimed: str | float | None) -> datetime | None:
    """A time as agents write it (RFC 3339 with up to 9 digits, unix seconds or milliseconds), else None."""
    try:
        if isinstance(claimed, str):
            read = datetime.fromisoformat(claimed)
            return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
        if claimed is not None:
            return datetime.fromtimestamp(claimed / 1000 if claimed > 1e11 else claimed, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def sample_time(claimed: datetime | None, received_at: datetime, transport: Transport) -> datetime:
    """The timestamp of a sample: the guest's time when it is plausible, else the time of receipt; in whole ms.

    For messages without a number; `run_times` has those with one.
    """
    earliest, latest = received_at - CLOCK_TOLERANCE, received_at + CLOCK_TOLERANCE
    if transport is Transport.MQTT:
        earliest, latest = received_at - QUEUE_TIME, received_at + BROKER_CLOCK_TOLERANCE
    if claimed is None or not earliest <= claimed <= latest:
        claimed = received_at
    return whole_milliseconds(claimed)


def whole_milliseconds(moment: datetime) -> datetime:
    """The store has milliseconds; truncating here makes the key that is compared the key that is stored."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def uuid7(moment: datetime, random: bytes) -> UUID:
    """A time-ordered UUID (RFC 9562, version 7) of 10 random bytes."""
    milliseconds = (moment - _EPOCH) // _MILLISECOND
    tail = int.from_bytes(random)
    return UUID(int=milliseconds << 80 | 7 << 76 | (tail >> 68 & 0xFFF) << 64 | 0b10 << 62 | tail & (1 << 62) - 1)


LATEST_TIME = datetime(2200, 1, 1, tzinfo=UTC)
LATEST_SECONDS = LATEST_TIME.timestamp()


def stored_time(claimed: str | float | None) -> datetime | None:
    """A guest's time as a column stores it; None for an implausible one."""
    moment = guest_time(claimed)
    return moment if moment is not None and _EPOCH < moment < LATEST_TIME else None
