"""The sender's side of docs/wire.md: which line to write next, and which lines to keep until the host has stored them.

Pure: no channel, and the clock is an argument. Lines are numbered without gaps as they are added; acknowledged and
dropped lines leave at the front, so the outbox always holds `oldest .. last`. The cursor moves over them as they are
written, and returns to the front whenever the channel may have lost something.

A machine that is reverted to a snapshot has an outbox that uses numbers again. The marks reveal it: an answer about a
line that is not ours means that ours never arrived. The lines that are held then become a new run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from uuid import UUID

# docs/wire.md: lines that get no acknowledgement for this long are written again.
NO_PROGRESS_SECONDS = 5.0
LINE_LIMIT_BYTES = 1024 * 1024
# The longest header: the fixed text, a UUID, two numbers of 19 digits, two marks, an age of 12 digits (30 years).
BODY_LIMIT_BYTES = LINE_LIMIT_BYTES - 200
# What the first line of a run follows.
NO_MARK = "0" * 16
# A late answer about a dropped line is recognised by its mark; of more dropped lines the marks are not kept.
_DROPPED_MARKS = 1000
# So many gaps are remembered; of lines before an older one it stays unknown whether the host has them.
_MOST_GAPS = 1000


class Outbox:
    """Numbered lines of one run of an agent, kept until they are acknowledged or the buffer is full.

    Each line is acknowledged, held, or one of these. `dropped`: dropped, and the host or broker certainly does not have
    it. `unconfirmed`: dropped after it was written and before an answer came: it may have it.

    `is_overflowing`: a line was dropped for want of room, and since then the buffer was never half empty.

    Invariant: `oldest <= cursor <= last + 1`, and exactly the lines `oldest .. last` are held.
    """

    def __init__(self, boot_id: str, limit_bytes: int) -> None:
        self.boot_id = boot_id
        self.dropped = 0
        self.unconfirmed = 0
        self.acknowledged = 0
        self.rewound = 0
        self.is_overflowing = False
        self._limit_bytes = limit_bytes
        self._held: deque[bytes] = deque()
        self._marks: deque[str] = deque([NO_MARK])  # of the lines `oldest - 1 .. last`
        self._added_at: deque[float] = deque()
        self._held_bytes = 0
        self._oldest = 1
        self._cursor = 1
        self._progress_at = 0.0
        # What the host or broker may have: lines up to here; of a broker up to the last whose answer was lost.
        self._sent_up_to = 0
        self._unanswered_up_to = 0
        # Up to here it is known which lines were dropped and not received.
        self._known_up_to = 0
        # Lines written as the oldest that is held, behind a dropped one: the host accepts them without those before.
        self._gaps: deque[int] = deque()
        self._dropped_marks: deque[str] = deque(maxlen=_DROPPED_MARKS)  # of the lines `.. oldest - 1`

    @property
    def last(self) -> int:
        """The number of the newest line, 0 before the first."""
        return self._oldest + len(self._held) - 1

    @property
    def written(self) -> int:
        """The number of the line written last."""
        return self._cursor - 1

    @property
    def held_lines(self) -> int:
        """How many lines are neither acknowledged nor dropped."""
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """The size of those lines, without their headers."""
        return self._held_bytes

    @property
    def resend_at(self) -> float | None:
        """When to call `next_line` again even if nothing happens; None while nothing is outstanding."""
        return None if self._cursor == self._oldest else self._progress_at + NO_PROGRESS_SECONDS

    def add(self, body: bytes, now_seconds: float) -> int:
        """Add a JSON object with at least one member; return the number of its line.

        A line states its age when it is written, so `now_seconds` is by a clock that is never set, here and there.
        While the buffer is over its limit the oldest lines are dropped; the newest is always kept.
        """
        self._held.append(body[1:])
        self._added_at.append(now_seconds)
        self._marks.append(blake2b(body, digest_size=8).hexdigest())
        self._held_bytes += len(body) - 1
        while self._held_bytes > self._limit_bytes and len(self._held) > 1:
            self._drop_oldest(self._sent_up_to)
            self.is_overflowing = True
        return self.last

    def restart(self) -> None:
        """Start again from the first line held: on a new connection, what was in the old one may be lost."""
        self._cursor = self._oldest

    def next_line(self, now_seconds: float) -> bytes | None:
        """The line to write now, newline included, and count it as written; None when there is none."""
        if self.resend_at is not None and now_seconds >= self.resend_at:
            self.restart()
        if self._cursor == self._oldest <= self.last:
            self._progress_at = now_seconds
        return self.following_line(now_seconds)

    def following_line(self, now_seconds: float) -> bytes | None:
        """As `next_line` but without a timeout, for a transport that itself sends again what is lost."""
        if self._cursor > self.last:
            return None
        seq = self._cursor
        line = self._line(seq, now_seconds)
        self._cursor += 1
        self._sent_up_to = max(self._sent_up_to, seq)
        if seq == self._oldest > self._known_up_to + 1 and (not self._gaps or self._gaps[-1] < seq):
            self._gaps.append(seq)
            if len(self._gaps) > _MOST_GAPS:
                self._known_up_to = self._gaps.popleft() - 1
        return line

    def acknowledge(self, boot_id: str, seq: int, now_seconds: float, mark: str = "") -> None:
        """Forget everything up to `seq`, whose mark the host gives; an answer to another run is ignored.

        An answer about a line that is not ours under this number, or that was never ours, begins a new run.
        """
        if boot_id != self.boot_id:
            return
        if seq > self.last or (seq >= self._oldest and mark not in ("", self._mark(seq))):
            self._start_new_run(seq, mark)
            return
        if seq < self._oldest:
            if self._is_dropped(seq, mark):
                self._confirm_dropped(seq)
            return
        self._confirm_dropped(seq)
        while self._oldest <= seq:
            self._forget_oldest()
            self.acknowledged += 1
        self._dropped_marks.clear()
        self._progress_at = now_seconds
        self._note_room()

    def confirm(self, seq: int) -> None:
        """The broker has this line and all before it; it may have been dropped here while it was in flight."""
        if seq < self._oldest:
            self._resolve(seq)
            self.acknowledged += 1
            return
        self.acknowledge(self.boot_id, seq, self._progress_at)

    def give_up(self, seq: int) -> None:
        """Drop this line, and all before it that are still held: the broker never takes it."""
        if seq < self._oldest:
            self._note_refused(seq)
        while self._oldest <= min(seq, self.last):
            self._drop_oldest(self._unanswered_up_to)
        self._known_up_to = max(self._known_up_to, seq)
        self._note_room()

    def republish(self, *, refused: Iterable[int], unanswered: Iterable[int]) -> None:
        """Start again from the first line held; of all lines in flight the answers are known, or are lost."""
        self._unanswered_up_to = max([self._unanswered_up_to, *unanswered])
        for seq in refused:
            if seq < self._oldest:
                self._note_refused(seq)
        self._sent_up_to = self._unanswered_up_to
        self.restart()

    def resend_after(self, boot_id: str, seq: int, now_seconds: float, mark: str = "") -> None:
        """As `acknowledge`, then write everything that is still held again."""
        self.acknowledge(boot_id, seq, now_seconds, mark)
        if boot_id == self.boot_id:
            self.restart()

    def _start_new_run(self, seq: int, mark: str) -> None:
        """The machine was reverted: number the lines that are held from 1, as a run that the host does not know.

        The new boot_id is a digest of what differs between reverts: after two reverts to one snapshot the machine's
        random numbers may be the same.
        """
        seed = f"{self.boot_id} {self._marks[-1]} {seq} {mark}".encode()
        self.boot_id = str(UUID(bytes=blake2b(seed, digest_size=16).digest(), version=4))
        self._marks[0] = NO_MARK
        # The lines that are held have other numbers, and may have arrived under the old ones.
        before = self._oldest - 1
        self._sent_up_to = max(0, self._sent_up_to - before)
        self._unanswered_up_to = max(0, self._unanswered_up_to - before)
        self._known_up_to = 0
        self._gaps.clear()
        self._dropped_marks.clear()
        self._oldest = self._cursor = 1
        self.rewound += 1

    def _note_room(self) -> None:
        # Half: a host that reads as slowly as lines are added leaves the buffer full.
        if self._held_bytes <= self._limit_bytes // 2:
            self.is_overflowing = False

    def _mark(self, seq: int) -> str:
        return self._marks[seq - self._oldest + 1]

    def _line(self, seq: int, now_seconds: float) -> bytes:
        # `oldest` is as of now and not as of `add`: it tells the host which lines will not come any more.
        age_ms = max(0, int((now_seconds - self._added_at[seq - self._oldest]) * 1000))
        header = b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":%d,"after":"%s","mark":"%s","age_ms":%d,' % (
            self.boot_id.encode(), seq, self._oldest, self._mark(seq - 1).encode(), self._mark(seq).encode(), age_ms,
        )  # fmt: skip
        return b"%s%s\n" % (header, self._held[seq - self._oldest])

    def _drop_oldest(self, received_up_to: int) -> None:
        """Drop the oldest line; the host may have lines up to `received_up_to`."""
        if self._oldest <= received_up_to:
            self.unconfirmed += 1
        else:
            self.dropped += 1
        self._dropped_marks.append(self._mark(self._oldest))
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._held_bytes -= len(self._held.popleft())
        self._marks.popleft()
        self._added_at.popleft()
        self._oldest += 1
        self._cursor = max(self._cursor, self._oldest)

    def _is_dropped(self, seq: int, mark: str) -> bool:
        """Whether an answer is about a line of ours that was dropped."""
        place = seq - self._oldest  # -1: the last one dropped
        return -len(self._dropped_marks) <= place < 0 and mark in ("", self._dropped_marks[place])

    def _confirm_dropped(self, seq: int) -> None:
        """The host has this line: of those before it that were dropped it has all that are behind the last gap."""
        behind = max([self._known_up_to, *(gap - 1 for gap in self._gaps if gap <= seq)])
        received = max(0, min(seq, self._oldest - 1, self._sent_up_to) - behind)
        self.unconfirmed -= received
        self.acknowledged += received
        self._known_up_to = max(self._known_up_to, seq)
        while self._gaps and self._gaps[0] <= seq:
            self._gaps.popleft()

    def _resolve(self, seq: int) -> None:
        """It is known now what became of a line that was dropped in flight."""
        self.unconfirmed -= 1
        self._known_up_to = max(self._known_up_to, seq)

    def _note_refused(self, seq: int) -> None:
        # An earlier copy, whose answer was lost, may have arrived.
        if seq > max(self._unanswered_up_to, self._known_up_to):
            self._resolve(seq)
            self.dropped += 1
