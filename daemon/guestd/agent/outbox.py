"""The sender's side of docs/wire.md: which line to write next, and what to keep until the host has it safe.

Pure: no channel, no clock but as an argument. Lines are numbered as they are added and stay numbered without
gaps: acknowledgement and giving up both take from the front, so what is held is always `oldest .. last`. The
cursor walks over it as lines are written and goes back to the front whenever the channel may have lost
something.
"""

from __future__ import annotations

from collections import deque

# docs/wire.md: so long may lines be outstanding without any acknowledgement before they are written again.
NO_PROGRESS_SECONDS = 5.0
LINE_LIMIT_BYTES = 1024 * 1024
# The longest header: the fixed text, a UUID, two numbers of 19 digits.
BODY_LIMIT_BYTES = LINE_LIMIT_BYTES - 160


class Outbox:
    """Numbered lines of one run of an agent, kept until they are acknowledged or the buffer is full.

    Invariant: `oldest <= cursor <= last + 1`, and exactly the lines `oldest .. last` are held.
    """

    def __init__(self, boot_id: str, limit_bytes: int) -> None:
        self.boot_id = boot_id
        self.given_up = 0
        self.acknowledged = 0
        self._limit_bytes = limit_bytes
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._oldest = 1
        self._cursor = 1
        self._progress_at = 0.0

    @property
    def last(self) -> int:
        """The number of the newest line, 0 before the first."""
        return self._oldest + len(self._held) - 1

    @property
    def held_lines(self) -> int:
        """How many lines are not acknowledged and not given up."""
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """What those lines take, without their headers."""
        return self._held_bytes

    @property
    def resend_at(self) -> float | None:
        """When to ask for `next_line` again even if nothing happens; None while nothing is outstanding."""
        return None if self._cursor == self._oldest else self._progress_at + NO_PROGRESS_SECONDS

    def add(self, body: bytes) -> int:
        """Take a JSON object with at least one member; return the number of its line.

        The oldest lines are given up while the buffer is over its bound; the newest is always kept.
        """
        self._held.append(body[1:])
        self._held_bytes += len(body) - 1
        while self._held_bytes > self._limit_bytes and len(self._held) > 1:
            self._drop_oldest()
            self.given_up += 1
        return self.last

    def restart(self) -> None:
        """Start again from the first line held: the channel came back, what was in it may be lost."""
        self._cursor = self._oldest

    def next_line(self, now_seconds: float) -> bytes | None:
        """The line to write now, newline included, and count it as written; None when there is none."""
        if self.resend_at is not None and now_seconds >= self.resend_at:
            self.restart()
        if self._cursor > self.last:
            return None
        if self._cursor == self._oldest:
            self._progress_at = now_seconds
        line = self._line(self._cursor)
        self._cursor += 1
        return line

    def acknowledge(self, boot_id: str, seq: int, now_seconds: float) -> None:
        """Forget everything up to `seq`; an answer to another run, or to lines never sent, is ignored."""
        if boot_id != self.boot_id or not self._oldest <= seq <= self.last:
            return
        while self._oldest <= seq:
            self._drop_oldest()
            self.acknowledged += 1
        self._progress_at = now_seconds

    def resend_after(self, boot_id: str, seq: int, now_seconds: float) -> None:
        """As `acknowledge`, and write again everything that is still held."""
        self.acknowledge(boot_id, seq, now_seconds)
        if boot_id == self.boot_id:
            self.restart()

    def _line(self, seq: int) -> bytes:
        # `oldest` is as of now and not as of `add`: it tells the host what it need not wait for any more.
        header = b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":%d,'
        return b"%s%s\n" % (
            header % (self.boot_id.encode(), seq, self._oldest),
            self._held[seq - self._oldest],
        )

    def _drop_oldest(self) -> None:
        self._held_bytes -= len(self._held.popleft())
        self._oldest += 1
        self._cursor = max(self._cursor, self._oldest)
