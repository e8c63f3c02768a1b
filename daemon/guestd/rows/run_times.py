"""Timestamps of numbered lines: when the samples of an agent's run were taken, in the order of their numbers. Pure.

A numbered line is kept by its agent until guestd has it, so a time long before the receipt does not show a wrong clock.
What is known of a line:

* its sample was taken no later than it was received, and no later than the next sample of its run;
* our agent states for how long it held the line, by a clock that is never set (`age_ms`). A channel takes no time,
  unless guestd did not read: the time of receipt less the age is when the sample was taken, whatever the guest's clock
  shows. A broker may hold messages for days;
* of a line without an age, how fast it came behind the line before: a backlog comes much faster than it was taken;
* the time that the guest claims, by a clock that may be wrong, and set right in the middle of a run.

Decision 0054 has the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from guestd.core.transport import Transport
from guestd.rows.times import BROKER_CLOCK_TOLERANCE, CLOCK_TOLERANCE, QUEUE_TIME, guest_time, whole_milliseconds

MILLISECOND = timedelta(milliseconds=1)
# A clock may be ahead of a moment that is known by this much: synchronised clocks differ by less.
AHEAD_OF_KNOWN = timedelta(seconds=1)
# A run's last sample is this far ahead of a receipt only after the host's clock was set back: the order starts again.
HOST_STEP = 2 * CLOCK_TOLERANCE

# A backlog stays one through this much of slower lines: while guestd waits for the store, it reads none for a while.
LEAD_LIMIT = 2 * CLOCK_TOLERANCE

# Where our agent writes both: directly behind the header. The same keys elsewhere in the line mean something else.
_CLAIM = re.compile(
    rb'\{"type":"metrics","boot_id":"[0-9a-f-]{36}","seq":[0-9]{1,18},"oldest":[0-9]{1,18}'
    rb'(?:,"after":"[0-9a-f]{16}","mark":"[0-9a-f]{16}")?'
    rb',(?:"age_ms":([0-9]{1,15}),)?"timestamp":"([^"\\]{1,40})"'
)


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
    found = _CLAIM.match(payload)
    age_ms, text = found.groups() if found else (None, None)
    claimed = guest_time(text.decode(errors="replace")) if text is not None else None
    return Claim(claimed, None if age_ms is None else int(age_ms), received_at, transport)


@dataclass(slots=True)
class Pace:
    """Whether the lines of a run come faster than they were taken. Without an age, nothing else shows a backlog."""

    before: Claim | None = None
    lead: timedelta = timedelta()
    """By how much the last lines came faster than half of that, at most LEAD_LIMIT."""
    is_live: bool = False
    """Whether the last line came no faster than it was taken: a clock that is behind is then wrong."""

    def add(self, claim: Claim) -> None:
        """Compare a line with the one before it."""
        before, self.before, self.is_live = self.before, claim, False
        if before is None or before.time is None or claim.time is None or claim.time <= before.time:
            # A clock that was set back shows no pace.
            return
        taken, received = claim.time - before.time, claim.received_at - before.received_at
        # What waited while guestd did not read, for whatever reason, has fallen behind at once.
        if received - taken <= CLOCK_TOLERANCE:
            self.lead = max(timedelta(), min(self.lead + taken - 2 * received, LEAD_LIMIT))
            self.is_live = not self.lead

    def is_plausible(self, claim: Claim) -> bool:
        """Whether the time of the line that was added last may be right."""
        if not claim.is_plausible:
            return False
        may_wait = claim.is_exact or claim.transport is Transport.MQTT or not self.is_live
        return may_wait or (claim.skew is not None and claim.skew >= -CLOCK_TOLERANCE)


def plausible_times(claims: Iterable[Claim]) -> Iterator[datetime | None]:
    """For each line of a run, in order: the time that it claims, None where that is not plausible."""
    pace = Pace()
    for claim in claims:
        pace.add(claim)
        yield claim.time if pace.is_plausible(claim) else None


def find_ceilings(times: Sequence[datetime | None]) -> Iterator[datetime | None]:
    """For each line of a run, from the last to the first: before which time it was taken, as later lines show.

    `times` as `plausible_times` gives them; None: unknown. A clock that was ahead and was then set right: without this,
    all later samples would have to be placed behind those that were taken before.
    """
    ceiling: datetime | None = None
    for time in reversed(times):
        yield ceiling
        if time is not None:
            ceiling = time if ceiling is None else min(ceiling, time)
        if ceiling is not None:
            ceiling = whole_milliseconds(ceiling) - MILLISECOND


@dataclass(slots=True)
class RunTimes:
    """What is known from the lines of one agent's run for the next one."""

    boot_id: str
    seq: int = 0
    last: datetime | None = None
    skew: timedelta | None = None
    """How far the guest's clock is ahead, by the last line that did not wait in its channel."""
    pace: Pace = field(default_factory=Pace)

    def place(self, seq: int, claim: Claim, ceiling: datetime | None = None) -> datetime:
        """The timestamp of a line's sample, in whole ms: after those of all lines with lower numbers."""
        if seq <= self.seq:
            # A broker delivered it late, or it is prepared again.
            is_plausible = claim.time is not None and self.pace.is_plausible(claim)
            moment = whole_milliseconds(claim.time) if claim.time is not None and is_plausible else claim.newest
            return _bounded(moment, claim, ceiling)
        self.pace.add(claim)
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
        if not self.pace.is_plausible(claim):
            return claim.newest
        # A clock that was set back shows nothing until it has caught up. In a backlog the next free moment disturbs no
        # later line.
        return claimed if is_later or (self.pace.lead and not claim.is_exact) else claim.newest

    def _waited_in_channel(self, skew: timedelta) -> bool:
        """Whether guestd did not read for a while: the clock was right and has, all at once, fallen far behind.

        A clock that was set back would show a time that was there before.
        """
        return self.skew is not None and abs(self.skew) <= CLOCK_TOLERANCE and skew < self.skew - CLOCK_TOLERANCE


def _bounded(moment: datetime, claim: Claim, ceiling: datetime | None) -> datetime:
    return max(claim.earliest, moment if ceiling is None else min(moment, ceiling))
