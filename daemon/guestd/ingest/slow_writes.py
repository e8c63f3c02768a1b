"""How many frames are written at once, after writes that the store did not finish within their deadline. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from guestd.rows.batch import Prepared, split_batch

# More than any batch has.
_MOST_FRAMES = 2**20
# After a write that was faster than this, twice as many frames are written at once.
FAST_SECONDS = 5.0


class SlowWrites:
    """Halves what is written at once with every time-out, and doubles it again with every fast write.

    The store answers otherwise, or no connection would have been made: the frames take long.
    """

    def __init__(self) -> None:
        self._most_frames = _MOST_FRAMES
        self._seq = -1
        self.timeouts = 0
        """How often the frame that is written alone has timed out, one after the other."""

    def choose(self, frames: Sequence[Prepared]) -> Sequence[Prepared]:
        """The first of these frames: those to write now."""
        return frames[: self._most_frames]

    def note_timeout(self, part: Sequence[Prepared]) -> None:
        """Note that the store did not finish writing these frames."""
        first_half, _ = split_batch(part)
        self._most_frames = len(first_half)
        if len(part) == 1:
            self.timeouts = self.timeouts + 1 if part[0].seq == self._seq else 1
            self._seq = part[0].seq

    def note_written(self, frames: int, seconds: float) -> None:
        """Note that so many frames are committed."""
        self.timeouts = 0
        if frames == self._most_frames and seconds < FAST_SECONDS:
            self._most_frames = min(2 * self._most_frames, _MOST_FRAMES)
