"""Finds the frame whose writing always fails: by halves, after some tries with the whole batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from guestd.rows.batch import Prepared, split_batch

# Of a batch, before it is halved: what fails once may succeed on a new connection.
TRIES = 3


class Bisection:
    """Chooses how much of a batch to write, by what has failed before.

    Frames are written in order. What fails is halved until one frame fails alone; the frames behind it are then written
    together, and halved without further tries if that fails too.
    """

    def __init__(self) -> None:
        self.found_seq: int | None = None
        """The frame that has failed alone."""
        self._forget()

    def _forget(self) -> None:
        self.found_seq = None
        self._first_seq, self._failures = -1, 0
        self._suspected_until_seq = -1
        self._most_frames: int | None = None

    def choose(self, batch: Sequence[Prepared]) -> Sequence[Prepared]:
        """The first frames of a batch: those to write now."""
        if self.found_seq is not None and batch[0].seq > self.found_seq:
            self.note_quarantined()  # the answer to its COMMIT was lost
        if batch[0].seq > self._suspected_until_seq:
            return batch
        return [frame for frame in batch if frame.seq <= self._suspected_until_seq][: self._most_frames]

    def note_failure(self, part: Sequence[Prepared]) -> bool:
        """Note that writing these frames failed, after `choose`.

        Returns whether to go on; False when the frame that was found is not the reason: nothing can be written.
        """
        first_seq = part[0].seq
        if first_seq == self.found_seq:
            self._forget()
            return False
        self._failures = self._failures + 1 if first_seq == self._first_seq else 1
        self._first_seq = first_seq
        if first_seq > self._suspected_until_seq:
            if self._failures < TRIES:
                return True
            self._suspected_until_seq = part[-1].seq
        first_half, _ = split_batch(part)
        self._most_frames = len(first_half)
        if len(part) == 1:
            self.found_seq = first_seq
        return True

    def note_quarantined(self) -> None:
        """Note that the frame that was found is quarantined."""
        self.found_seq = self._most_frames = None
