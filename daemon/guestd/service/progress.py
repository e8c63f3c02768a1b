"""Detects parts of guestd that have work and make no progress. Pure.

A loop that only iterates is not healthy: a part makes progress when it completes a step, and a failed attempt counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MonitoredPart:
    """`count_steps` grows with every step, failed ones included: retrying an unavailable store is progress."""

    has_work: Callable[[], bool]
    count_steps: Callable[[], int]


class ProgressMonitor:
    """Monitors parts by name; `limit_seconds` must exceed the duration of any of their steps."""

    def __init__(self, parts: Mapping[str, MonitoredPart], *, limit_seconds: float) -> None:
        self._parts = parts
        self._limit_seconds = limit_seconds
        self._last_progress: dict[str, tuple[int, float]] = {}

    def find_stuck(self, now_seconds: float) -> list[str]:
        """Find the parts that had work and made no progress for longer than the limit. `now_seconds` is monotonic."""
        stuck = []
        for name, part in self._parts.items():
            steps = part.count_steps()
            last_steps, since_seconds = self._last_progress.get(name, (None, now_seconds))
            if last_steps != steps or not part.has_work():
                since_seconds = now_seconds
            self._last_progress[name] = (steps, since_seconds)
            if now_seconds - since_seconds > self._limit_seconds:
                stuck.append(name)
        return stuck
