"""Batches: when one is due, what identifies a frame, free timestamps for samples, splitting a batch. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from uuid import UUID

from guestd.core.config import CommandLines
from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.rows.model import Rows
from guestd.rows.run_times import HOST_STEP
from guestd.wire.decode import Decoded
from guestd.wire.events import Event
from guestd.wire.line import LineId


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame that is ready for the store: its rows, its event, or the reason why it has neither."""

    seq: int
    machine_id: UUID
    received_at: datetime
    payload: bytes
    content: Rows | Event | BadFrame
    digest: int | None
    command_lines: CommandLines = "redacted"
    transport: Transport = Transport.VIRTIO
    line_id: LineId | None = None
    claimed_at: datetime | None = None
    """The time of its sample by the guest, if the message has one."""

    @property
    def has_hosts_time(self) -> bool:
        """Whether its sample is not at the guest's time: another host that receives the same line has another one."""
        if not isinstance(self.content, Rows):
            return False
        return self.claimed_at is None or abs(self.content.shared.timestamp - self.claimed_at) >= _MILLISECOND

    @property
    def times(self) -> tuple[datetime, ...]:
        """When it was received, and the timestamp of its sample."""
        if isinstance(self.content, Rows):
            return self.received_at, self.content.shared.timestamp
        return (self.received_at,)


_DIGEST_BITS = 63


def digest(payload: bytes, line_id: LineId | None, message: Decoded | BadFrame) -> int | None:
    """Identifies a frame that is sent again, in 63 bits; None: not identifiable.

    A numbered line as `line_digest` does; else by its bytes, if it has a timestamp or cannot be decoded.
    """
    if line_id is not None:
        return line_digest(line_id)
    if isinstance(message, BadFrame) or message.metrics.timestamp is not None:
        return _to_number(blake2b(payload, digest_size=8, person=b"payload").digest())
    return None


def place_digest(payload: bytes, seq: int, received_at: datetime) -> int:
    """Identifies a frame by its place in its spool, in 63 bits: a spool under a new id writes its frames again."""
    place = b"%d %d " % (seq, round(received_at.timestamp() * 1000))
    return _to_number(blake2b(place + payload, digest_size=8, person=b"place").digest())


def line_digest(line_id: LineId) -> int:
    """Identifies a numbered line, in 63 bits: by its mark, else by boot_id and number.

    A machine that is reverted to a snapshot sends a line again with its mark, under another number.
    """
    if line_id.mark is not None:
        return _to_number(blake2b(line_id.mark.encode(), digest_size=8, person=b"mark").digest())
    numbered = b"%s %d" % (line_id.boot_id.encode(), line_id.seq)
    return _to_number(blake2b(numbered, digest_size=8, person=b"boot_id seq").digest())


def _to_number(hashed: bytes) -> int:
    return int.from_bytes(hashed) >> (64 - _DIGEST_BITS)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is due: whichever comes first."""

    max_frames: int
    max_bytes: int
    max_age_seconds: float


def is_due(waiting_bytes: int, waited_seconds: float, limits: Limits) -> bool:
    """Whether to write the waiting frames now."""
    return waiting_bytes >= limits.max_bytes or waited_seconds >= limits.max_age_seconds


def split_batch(frames: Sequence[Prepared]) -> tuple[Sequence[Prepared], Sequence[Prepared]]:
    """The batch in two parts, in order; the first is never empty."""
    middle = (len(frames) + 1) // 2
    return frames[:middle], frames[middle:]


Moment = tuple[UUID, datetime]
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Placed:
    """The line with the highest number of a machine's run, and the timestamp of its sample."""

    boot_id: str
    seq: int
    at: datetime

    def is_before(self, line: LineId) -> bool:
        """Whether it is an earlier line of the same run."""
        return self.boot_id == line.boot_id and self.seq < line.seq

    def or_later(self, other: Placed | None) -> Placed:
        """The other one, if that is a later line of the same run."""
        return other if other is not None and other.boot_id == self.boot_id and other.seq > self.seq else self


def keep_order(desired: Sequence[Moment], frames: Sequence[Prepared], placed: Mapping[UUID, Placed]) -> list[Moment]:
    """The desired (machine, time) of each frame, moved behind the sample of the line before it in its run.

    `placed` has the line before the first of these frames. `find_free_moments` leaves moments of one run in this order.
    """
    moments = []
    known: dict[UUID, Placed] = {}
    for (machine_id, desired_at), frame in zip(desired, frames, strict=True):
        line, at = frame.line_id, desired_at
        if line is not None:
            for before in (known.get(machine_id), placed.get(machine_id)):
                # Far ahead of its receipt: the host's clock was set back since, and is followed.
                if before is not None and before.is_before(line) and before.at <= frame.received_at + HOST_STEP:
                    at = max(at, before.at + _MILLISECOND)
            known[machine_id] = Placed(line.boot_id, line.seq, at).or_later(known.get(machine_id))
        moments.append((machine_id, at))
    return moments


def find_free_moments(desired: Sequence[Moment], occupied: Set[Moment]) -> list[Moment]:
    """The (machine, time) of each frame's rows: as desired, or moved by whole ms to the next that is free."""
    used = set(occupied)
    # Of moments that a search has passed, where it went on: nobody passes them one by one again. A guest that always
    # sends the same time, or ever later ones within a long occupied span, costs no more than its frames and that span.
    behind: dict[Moment, Moment] = {}
    moments = []
    for machine_id, desired_at in desired:
        moment, passed = (machine_id, desired_at), list[Moment]()
        while moment in used:
            passed.append(moment)
            moment = behind.get(moment) or (machine_id, moment[1] + _MILLISECOND)
        used.add(moment)
        behind.update(dict.fromkeys(passed, moment))
        moments.append(moment)
    return moments
