"""What the gate decides about lines of one machine, and the state of their sender after them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from guestd.ingest.turns import estimate_rows
from guestd.spool.file import Entry, SenderState
from guestd.wire.line import Header, Line

# Receive times follow the host's clock when it is set back by more than this; by less they keep their order.
CLOCK_STEP_MS = 5 * 60 * 1000


@dataclass(slots=True)
class Decision:
    """What was decided about lines of one machine: entries to append, and the state of its sender after them."""

    machine_id: UUID
    sender: SenderState | None
    entries: list[Entry] = field(default_factory=list)
    answer_to: str | None = None  # the boot_id of numbered lines
    has_gap: bool = False
    unnumbered: int = 0
    agent_dropped: int = 0  # lines before these that their agent no longer had
    rows: int = 0  # the work of the entries
    # By the kind that they answer, the latest: the replies to a guest stay shorter than its lines.
    replies: dict[str, bytes] = field(default_factory=dict)

    def last_seq(self, boot_id: str) -> int:
        """The number of the last line of a run that was accepted; 0 when there is none."""
        sender = self.sender
        return sender.seq or 0 if sender is not None and sender.boot_id == boot_id else 0

    def last_mark(self, boot_id: str) -> str | None:
        """The mark of that line; None when it has none."""
        sender = self.sender
        return sender.mark if sender is not None and sender.boot_id == boot_id else None

    def is_next(self, header: Header) -> bool:
        """Whether a line follows the last accepted one, and not another line of the same number."""
        last_mark = self.last_mark(header.boot_id)
        return header.seq == self.last_seq(header.boot_id) + 1 and (
            last_mark is None or header.after in (None, last_mark)
        )

    def accept(self, line: Line, now_ms: int) -> None:
        """Put a line among the entries."""
        sender, header = self.sender, line.header
        received_ms = get_received_at_ms(sender, now_ms)
        boot_id = header.boot_id if header else sender.boot_id if sender else None
        seq = header.seq if header else sender.seq if sender else None
        mark = header.mark if header else sender.mark if sender else None
        # Of a run that comes by a broker some lines may still be missing.
        below = sender.below if sender and not header else -1
        self.sender = SenderState(received_ms, boot_id, seq, mark, below)
        self.unnumbered += header is None
        self.entries.append(Entry(self.machine_id, line, self.sender))
        self.rows += estimate_rows(line.payload) if line.payload is not None else 0


def get_received_at_ms(sender: SenderState | None, now_ms: int) -> int:
    """The receive time of a sender's next frame, unix milliseconds.

    Strictly increasing, the order of its frames; but it does not stay ahead of a clock that was corrected.
    """
    if sender is not None and sender.received_at_ms < now_ms + CLOCK_STEP_MS:
        return max(now_ms, sender.received_at_ms + 1)
    return now_ms
