"""Which numbered lines of a sender are settled where they may come with gaps, late and twice, as from a broker. Pure.

The place of a run is its highest number and, as the bits of an integer, which numbers below it are settled: bit 0 is
the one right below. A negative integer has ones without end, so -1 is a run of which nothing is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

# More than a broker may have on its way to us. Of lines further back it is remembered only whether any was missing.
WINDOW_LINES = 4096
_WINDOW = (1 << WINDOW_LINES) - 1


@dataclass(frozen=True, slots=True)
class Place:
    """How far a run is settled: its highest number, and which below it."""

    seq: int
    below: int


def begun(seq: int) -> Place:
    """The place of a run whose first line to arrive is this one; of earlier ones nothing is known."""
    return Place(seq, -1 if seq == 1 else 0)


def after(place: Place, seq: int) -> Place | None:
    """The place once this line is settled too; None when it was already."""
    ahead = seq - place.seq
    if ahead > WINDOW_LINES:
        # No shift: the number is its sender's word, and it may be any.
        return Place(seq, 0)
    if ahead > 0:
        return Place(seq, _within_window((place.below << 1 | 1) << ahead - 1))
    back = -ahead - 1
    if ahead == 0 or place.below >> back & 1:
        return None
    return Place(place.seq, place.below | 1 << back) if back < WINDOW_LINES else place


def _within_window(below: int) -> int:
    # Where one is missing behind the window too, none there is settled any more: the store knows which it has.
    return below if below | _WINDOW == -1 else below & _WINDOW
