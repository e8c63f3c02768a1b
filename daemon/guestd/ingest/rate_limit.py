"""The rate limit of each machine: token buckets for bytes, frames and rows. Pure: the time is an argument.

A machine may be charged for more than it has left, because its rows are known only after they have been made; it is
then over its limit until enough time has passed. A bucket is stored as the moment at which it will be full again, so
that a machine whose buckets are full needs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

# More machines than a host has. A broker's topics may name any id: beyond this the one charged longest ago is dropped.
MAX_MACHINES = 20_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Sustained rate and burst size of one machine."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits that apply to every machine."""

    size_bytes: Rate
    frames: Rate
    rows: Rate


class RateLimit:
    """The buckets of all machines. `now_seconds` is of a monotonic clock."""

    def __init__(self, rates: Rates) -> None:
        self._rates = (rates.size_bytes, rates.frames, rates.rows)
        self._full_at_seconds: dict[UUID, tuple[float, ...]] = {}

    def set_rates(self, rates: Rates) -> None:
        """Use other rates from now on. The debt of a machine stays."""
        self._rates = (rates.size_bytes, rates.frames, rates.rows)

    def charge(
        self, machine_id: UUID, now_seconds: float, *, size_bytes: int = 0, frames: int = 0, rows: int = 0
    ) -> None:
        """Take what a machine has used out of its buckets."""
        before = self._full_at_seconds.pop(machine_id, (now_seconds,) * len(self._rates))
        if len(self._full_at_seconds) >= MAX_MACHINES:
            del self._full_at_seconds[next(iter(self._full_at_seconds))]
        # Inserted at the end: the dictionary is ordered by the last charge.
        self._full_at_seconds[machine_id] = tuple(
            max(full_at, now_seconds) + used / rate.per_second
            for full_at, used, rate in zip(before, (size_bytes, frames, rows), self._rates, strict=True)
        )

    def wait_seconds(self, machine_id: UUID, now_seconds: float) -> float:
        """Time until the machine is within its limit; 0 when it is."""
        full_at_seconds = self._full_at_seconds.get(machine_id)
        if full_at_seconds is None:
            return 0.0
        if max(full_at_seconds) <= now_seconds:
            del self._full_at_seconds[machine_id]
            return 0.0
        return max(
            0.0,
            *(
                full_at - rate.burst / rate.per_second - now_seconds
                for full_at, rate in zip(full_at_seconds, self._rates, strict=True)
            ),
        )
