"""The memory for lines that have not arrived whole, one budget for all channels. Pure."""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    """What keeps the beginning of a line in memory."""

    def give_up(self) -> None:
        """Free it: the line is refused, and its channel is read from the start."""


class PartialLines:
    """How much each channel keeps. Above the budget the oldest of the larger lines are given up.

    Not the largest: it may be that of a guest that sends a long line steadily, among many that stopped earlier.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # In the order in which the lines began.
        self._kept_bytes: dict[Holder, int] = {}
        self.bytes = 0

    def note(self, holder: Holder, kept_bytes: int, *, is_new: bool) -> None:
        """Note what a channel keeps now; `is_new`: of another line than before."""
        if is_new or not kept_bytes:
            self.bytes -= self._kept_bytes.pop(holder, 0)
        if not kept_bytes:
            return
        self.bytes += kept_bytes - self._kept_bytes.get(holder, 0)
        self._kept_bytes[holder] = kept_bytes
        while self.bytes > self._max_bytes:
            self._give_up_one()

    def _give_up_one(self) -> None:
        # Short ones free nothing: all together keep less than half of the memory.
        least_bytes = self.bytes / len(self._kept_bytes) / 2
        holder = next(each for each, kept_bytes in self._kept_bytes.items() if kept_bytes >= least_bytes)
        self.bytes -= self._kept_bytes.pop(holder)
        holder.give_up()
