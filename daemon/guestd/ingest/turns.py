"""Whose frames may wait for the store: machines that send little go ahead, all others take turns. Pure.

The spool is read in order, so what waits in it delays everybody. A frame's work is estimated before it is accepted, in
rows: what takes as long as a row to decode and store, about 20 microseconds. A machine that stays within `LIGHT` is
never stopped. The frames of all others, together, are a small part of what the writer does, and few of them wait at a
time, however many machines send them (docs/decisions/0066-heavy-machines-take-turns.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from guestd.ingest.rate_limit import MAX_MACHINES, Rate
from guestd.wire import limits

# A frame without rows, and these many bytes or backslashes, take about as long as so many rows, or as one.
FRAME_ROWS, BYTES_PER_ROW, ESCAPES_PER_ROW = 5, 1024, 100
# What only applications have, each of which takes as long as so many rows more when it is new: it is merged.
APPLICATION_KEY, APPLICATION_ROWS = b'exe_path"', 2
# Objects of a message that become rows: an application becomes two.
MAX_OBJECTS = limits.PROCESSES + limits.SOCKETS + limits.SERVICES + 2 * limits.APPLICATIONS
# A hundredth of the writer's time, and ten times what a large machine sends; at once a tenth of a second.
LIGHT = Rate(500, 5000)
# A quarter of the writer's time for all others together, as it was estimated before and as it was measured after,
TURN_SHARE, TURN_ROWS_PER_SECOND = 0.25, 12_500
# and as much of theirs waits at a time, or one frame. It delays everybody's frames by a twentieth of a second.
TURN_ROWS = 2500
# A machine takes turns for this long after it was last found to send more than `LIGHT`; one counts among all machines
# for this long after its last frame.
HEAVY_SECONDS, ACTIVE_SECONDS = 10.0, 600.0


def estimate_rows(payload: bytes) -> int:
    """The work of a frame, without decoding it: an upper bound, except for inventories that change."""
    objects = min(payload.count(b"{"), MAX_OBJECTS)
    applications = min(payload.count(APPLICATION_KEY), limits.APPLICATIONS)
    return least_rows(payload) + objects + applications * APPLICATION_ROWS + payload.count(b"\\") // ESCAPES_PER_ROW


def least_rows(payload: bytes) -> int:
    """What `estimate_rows` is at least, for the size alone."""
    return FRAME_ROWS + len(payload) // BYTES_PER_ROW


def rows_beyond_estimate(rows: int, payload: bytes) -> int:
    """How many rows a frame has that its estimate did not show; hardly one has any, and most take one scan to know."""
    if rows <= least_rows(payload) + min(payload.count(b"{"), MAX_OBJECTS):
        return 0
    return max(0, rows - estimate_rows(payload))


class Turns:
    """What each machine has sent lately, and when the next heavy frame may go. `now_seconds`: a monotonic clock."""

    def __init__(self) -> None:
        # When the bucket of each is full again. All three are in the order of their last change.
        self._full_at_seconds: dict[UUID, float] = {}
        self._heavy: dict[UUID, float] = {}
        self._active: dict[UUID, float] = {}
        self._free_at_seconds = 0.0

    def take_light(self, machine_id: UUID, now_seconds: float, rows: int, silent_seconds: float) -> bool:
        """Charge a machine that stays within `LIGHT`; False, and nothing is charged, when these rows are beyond it.

        What it did not send in `silent_seconds` before it may send now.
        """
        _put(self._active, machine_id, now_seconds)
        if not self.is_light(machine_id, now_seconds, rows, silent_seconds):
            self.note_heavy(machine_id, now_seconds)
            return False
        self._charge(machine_id, now_seconds, rows)
        return True

    def charge_reading(self, machine_id: UUID, now_seconds: float, rows: int, silent_seconds: float) -> None:
        """Charge rows as which a message was read of which nothing may be kept; beyond `LIGHT` they are owed as well.

        Otherwise the next message, if it seems little, would be within it again.
        """
        if not self.take_light(machine_id, now_seconds, rows, silent_seconds):
            self._charge(machine_id, now_seconds, rows)
            self.take_turn(now_seconds, rows)

    def is_light(self, machine_id: UUID, now_seconds: float, rows: int, silent_seconds: float) -> bool:
        """Whether a machine with these rows stays within `LIGHT`."""
        full_at = self._full_with(machine_id, now_seconds, rows)
        return full_at - now_seconds <= LIGHT.burst / LIGHT.per_second + silent_seconds

    def note_heavy(self, machine_id: UUID, now_seconds: float) -> None:
        """Note that a machine has sent more than `LIGHT`, which is refused or waits."""
        _put(self._active, machine_id, now_seconds)
        _put(self._heavy, machine_id, now_seconds)

    def are_most_heavy(self, now_seconds: float) -> bool:
        """Whether most machines send more than `LIGHT`: after an outage agents send what they have kept.

        Turns would spare nobody then.
        """
        _drop_before(self._active, now_seconds - ACTIVE_SECONDS)
        _drop_before(self._heavy, now_seconds - HEAVY_SECONDS)
        return 2 * len(self._heavy) > len(self._active)

    def wait_seconds(self, now_seconds: float) -> float:
        """Time until the next heavy frame may go."""
        return max(0.0, self._free_at_seconds - now_seconds)

    def take_turn(self, now_seconds: float, rows: int) -> None:
        """Charge all heavy machines for rows of one."""
        self._free_at_seconds = max(self._free_at_seconds, now_seconds) + rows / TURN_ROWS_PER_SECOND

    def note_stored(self, machine_ids: Iterable[UUID], now_seconds: float, took_seconds: float) -> None:
        """A batch of these machines has been stored; with a heavy one among them, the others get as long as their part.

        Whatever the estimate was, and whatever the store can do.
        """
        if any(machine_id in self._heavy for machine_id in machine_ids):
            rest_seconds = took_seconds * (1 / TURN_SHARE - 1)
            self._free_at_seconds = max(self._free_at_seconds, now_seconds + rest_seconds)

    def charge(self, machine_id: UUID, now_seconds: float, rows: int) -> None:
        """Charge rows that were not estimated."""
        if machine_id in self._heavy:
            self.take_turn(now_seconds, rows)
        else:
            self._charge(machine_id, now_seconds, rows)

    def _charge(self, machine_id: UUID, now_seconds: float, rows: int) -> None:
        _put(self._full_at_seconds, machine_id, self._full_with(machine_id, now_seconds, rows))

    def _full_with(self, machine_id: UUID, now_seconds: float, rows: int) -> float:
        return max(self._full_at_seconds.get(machine_id, 0.0), now_seconds) + rows / LIGHT.per_second


def _put(times: dict[UUID, float], machine_id: UUID, at_seconds: float) -> None:
    times.pop(machine_id, None)
    if len(times) >= MAX_MACHINES:
        del times[next(iter(times))]
    times[machine_id] = at_seconds


def _drop_before(times: dict[UUID, float], oldest_seconds: float) -> None:
    while times and times[first := next(iter(times))] < oldest_seconds:
        del times[first]
