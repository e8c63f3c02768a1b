"""Which numbered lines of a sender are settled when they may arrive with gaps, late or twice, as from a broker. Pure.

A window holds a run's highest number and, as the bits of an integer, which numbers below it are settled: bit 0 is the
one directly below. A negative integer has ones without end, so -1 is a run without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

# More than a broker may have in flight to us. For older lines only one fact is kept: whether any was missing.
WINDOW_LINES = 4096
_WINDOW = (1 << WINDOW_LINES) - 1


@dataclass(frozen=True, slots=True)
class ReplayWindow:
    """How far a run is settled: its highest number, and which numbers below it."""

    seq: int
    below: int


def start(seq: int) -> ReplayWindow:
    """The window of a run whose first line to arrive has this number; nothing is known of earlier ones."""
    return ReplayWindow(seq, -1 if seq == 1 else 0)


def advance(window: ReplayWindow, seq: int) -> ReplayWindow | None:
    """The window once this line is settled too; None when it already was."""
    ahead = seq - window.seq
    if ahead > WINDOW_LINES:
        # No shift: the sender chose the number, and it may be any.
        return ReplayWindow(seq, 0)
    if ahead > 0:
        return ReplayWindow(seq, _truncate((window.below << 1 | 1) << ahead - 1))
    back = -ahead - 1
    if ahead == 0 or window.below >> back & 1:
        return None
    return ReplayWindow(window.seq, window.below | 1 << back) if back < WINDOW_LINES else window


def _truncate(below: int) -> int:
    # With a gap behind the window none there counts as settled: the store knows which of them it has.
    return below if below | _WINDOW == -1 else below & _WINDOW
