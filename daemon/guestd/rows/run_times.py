"""Timestamps of numbered lines: when the samples of an agent's run were taken, in the order of their numbers. Pure.

A numbered line is kept by its agent until guestd has it, so a time long before the receipt does not show a wrong clock.
What is known of a line:

* its sample was taken no later than it was received, and no later than the next sample of its run;
* our agent states for how long it held the line, by a clock that is never set (`age_ms`). A channel takes no time,
  unless guestd did not read: the time of receipt less the age is when the sample was taken, whatever the guest's clock
  shows. A broker may hold messages for days;
* the time that the guest claims, by a clock that may be wrong, and set right in the middle of a run.

Decision 0054 has the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from guestd.core.transport import Transport
from guestd.rows.times import BROKER_CLOCK_TOLERANCE, CLOCK_TOLERANCE, QUEUE_TIME, guest_time, whole_milliseconds

MILLISECOND = timedelta(milliseconds=1)
# A clock may be ahead of a moment that is known by this much: synchronised clocks differ by less.
AHEAD_OF_KNOWN = timedelta(seconds=1)
# A run's last sample is this far ahead of a receipt only after the host's clock was set back: the order starts again.
HOST_STEP = 2 * CLOCK_TOLERANCE

# Where our agent writes both, directly behind the header.
_CLAIM = re.compile(rb'(?:"age_ms":([0-9]{1,15}),)?"timestamp":"([^"\\]{1,40})"')
_CLAIM_BYTES = 400


@dataclass(frozen=True, slots=True)
class Claim:
    """The time that a numbered line claims, its age when it was sent (None: unknown), when and how it was received."""

    time: datetime | None
    age_ms: int | None
    received_at: datetime
    transport: Transport

    @property
    def earliest(self) -> datetime:
        """No sample is stored earlier, so that a guest cannot create chunks over a wide range."""
        return whole_milliseconds(self.received_at) - QUEUE_TIME

    @property
    def newest(self) -> datetime:
        """The sample was taken no later than this."""
        age = min(timedelta(milliseconds=min(self.age_ms or 0, _QUEUE_MS)), QUEUE_TIME)
        return whole_milliseconds(self.received_at) - age

    @property
    def is_exact(self) -> bool:
        """Whether it was taken at `newest`, unless it waited in the channel as well."""
        return self.age_ms is not None and self.transport is Transport.VIRTIO

    @property
    def skew(self) -> timedelta | None:
        """The claimed time less `newest`: how far the guest's clock is ahead, or less if the line waited elsewhere."""
        return None if self.time is None else self.time - self.newest

    @property
    def is_plausible(self) -> bool:
        """Whether a clock that is right can have shown this time."""
        if self.time is None or self.skew is None or self.time < self.earliest:
            return False
        if self.is_exact:
            return -CLOCK_TOLERANCE <= self.skew <= AHEAD_OF_KNOWN
        return self.skew <= (BROKER_CLOCK_TOLERANCE if self.transport is Transport.MQTT else CLOCK_TOLERANCE)


_QUEUE_MS = QUEUE_TIME // MILLISECOND


def read_claim(payload: bytes, received_at: datetime, transport: Transport) -> Claim:
    """The claim of a line that is not decoded; without a time where another program than our agent wrote it."""
    found = _CLAIM.search(payload, 0, _CLAIM_BYTES)
    age_ms, text = found.groups() if found else (None, None)
    claimed = guest_time(text.decode(errors="replace")) if text is not None else None
    return Claim(claimed, None if age_ms is None else int(age_ms), received_at, transport)


def find_ceilings(claims: Sequence[Claim]) -> list[datetime | None]:
    """For each line of a run, in order: the time before which it was taken, as later lines show; None: unknown.

    A clock that was ahead and was then set right: without this, all later samples would have to be placed behind those
    that were taken before.
    """
    ceilings: list[datetime | None] = []
    ceiling: datetime | None = None
    for claim in reversed(claims):
        ceilings.append(ceiling)
        if claim.time is not None and claim.is_plausible:
            ceiling = claim.time if ceiling is None else min(ceiling, claim.time)
        if ceiling is not None:
            ceiling = whole_milliseconds(ceiling) - MILLISECOND
    return ceilings[::-1]


@dataclass(slots=True)
class RunTimes:
    """What the lines of one agent's run tell about the next one."""

    boot_id: str
    seq: int = 0
    last: datetime | None = None
    skew: timedelta | None = None
    """How far the guest's clock is ahead, by the last line that did not wait in its channel."""

    def place(self, seq: int, claim: Claim, ceiling: datetime | None = None) -> datetime:
        """The timestamp of a line's sample, in whole ms: after those of all lines with lower numbers."""
        if seq <= self.seq:
            # A broker delivered it late, or it is prepared again.
            moment = whole_milliseconds(claim.time) if claim.time is not None and claim.is_plausible else claim.newest
            return _bounded(moment, claim, ceiling)
        if self.last is not None and self.last > claim.received_at + HOST_STEP:
            self.last = None
        moment = _bounded(self._choose(claim), claim, ceiling)
        self.last = moment if self.last is None else max(moment, self.last + MILLISECOND)
        self.seq = seq
        return self.last

    def _choose(self, claim: Claim) -> datetime:
        if claim.time is None or claim.skew is None:
            return claim.newest
        claimed = whole_milliseconds(claim.time)
        is_later = self.last is None or claimed > self.last
        if claim.is_exact:
            if is_later and self._waited_in_channel(claim.skew):
                return claimed
            self.skew = claim.skew
        if not claim.is_plausible:
            return claim.newest
        # A clock that was set back shows nothing until it has caught up; the next free moment disturbs no later line.
        return claimed if is_later or not claim.is_exact else claim.newest

    def _waited_in_channel(self, skew: timedelta) -> bool:
        """Whether guestd did not read for a while: the clock was right and has, all at once, fallen far behind.

        A clock that was set back would show a time that was there before.
        """
        return self.skew is not None and abs(self.skew) <= CLOCK_TOLERANCE and skew < self.skew - CLOCK_TOLERANCE


def _bounded(moment: datetime, claim: Claim, ceiling: datetime | None) -> datetime:
    return max(claim.earliest, moment if ceiling is None else min(moment, ceiling))
