"""How much each machine may send: token buckets for bytes, frames and rows. Pure: the time is an argument.

A machine may be charged for more than it has left, because its rows are known only when they have been made; it is then
over its budget until time has paid for them. A bucket is kept as the moment at which it will be full again, so that a
machine whose buckets are full needs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

# More machines than a host has. Ids may come from a broker's topics: the one charged longest ago is then forgotten.
MOST_MACHINES = 20_000


@dataclass(frozen=True, slots=True)
class Rate:
    """What one machine may use in the long run, and how much of it at once."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True)
class Rates:
    """The budget of every machine."""

    size_bytes: Rate
    frames: Rate
    rows: Rate


class Budget:
    """The buckets of all machines. `now_seconds` is of any clock that never goes back."""

    def __init__(self, rates: Rates) -> None:
        self._rates = (rates.size_bytes, rates.frames, rates.rows)
        self._full_at_seconds: dict[UUID, tuple[float, ...]] = {}

    def change(self, rates: Rates) -> None:
        """Other rates from now on; what a machine owes by the old ones it goes on owing."""
        self._rates = (rates.size_bytes, rates.frames, rates.rows)

    def charge(
        self, machine_id: UUID, now_seconds: float, *, size_bytes: int = 0, frames: int = 0, rows: int = 0
    ) -> None:
        """Take what a machine has used out of its buckets."""
        before = self._full_at_seconds.pop(machine_id, (now_seconds,) * len(self._rates))
        if len(self._full_at_seconds) >= MOST_MACHINES:
            del self._full_at_seconds[next(iter(self._full_at_seconds))]
        # Last in the order of the dictionary: it was charged last.
        self._full_at_seconds[machine_id] = tuple(
            max(full_at, now_seconds) + used / rate.per_second
            for full_at, used, rate in zip(before, (size_bytes, frames, rows), self._rates, strict=True)
        )

    def wait_seconds(self, machine_id: UUID, now_seconds: float) -> float:
        """How long until the machine is within its budget; 0 when it is."""
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
