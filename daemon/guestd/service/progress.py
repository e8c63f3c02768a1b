"""Whether the parts of guestd do their work: one that has something to do and does not move is stuck. Pure.

A loop that merely turns is not health: what counts is that frames got on, or that it was tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MonitoredPart:
    """`moves` grows with every step, a failed one included: who waits for a store that is away does his work."""

    has_work: Callable[[], bool]
    moves: Callable[[], int]


class ProgressMonitor:
    """Looks at parts, by name; `limit_seconds` is more than any of their steps may take."""

    def __init__(self, parts: Mapping[str, MonitoredPart], *, limit_seconds: float) -> None:
        self._parts = parts
        self._limit_seconds = limit_seconds
        self._seen: dict[str, tuple[int, float]] = {}

    def find_stuck(self, now_seconds: float) -> list[str]:
        """The parts that had work for so long and did not move. `now_seconds` is of a clock that never goes back."""
        found = []
        for name, part in self._parts.items():
            moves = part.moves()
            seen_moves, since_seconds = self._seen.get(name, (None, now_seconds))
            if seen_moves != moves or not part.has_work():
                since_seconds = now_seconds
            self._seen[name] = (moves, since_seconds)
            if now_seconds - since_seconds > self._limit_seconds:
                found.append(name)
        return found
