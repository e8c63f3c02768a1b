"""Lines become frames on disk: size, budget, channel and sequence are judged here, before anything is accepted.

Accepted means fsynced in the spool. What is not accepted is counted by its reason and, where its sender
can send it again, not acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from guestd.ingest.rate_limit import Budget
from guestd.spool.file import Entry, Sender, from_milliseconds
from guestd.spool.queue import Spool
from guestd.wire import events, schema
from guestd.wire import replies as answers
from guestd.wire.framing import Oversize

# An agent needs this long to hear of a gap and write again; what it wrote meanwhile is no reason to ask once more.
ASK_AGAIN_MS = 1000
# A line that is not whole is asked for again so often before it is taken as it is.
BROKEN_TIMES = 3
# What a guest may add to the count of given-up lines at once: the number is its word alone.
MOST_DROPPED = 1_000_000
# Receive times follow the host's clock when it is put back by more than this; by less they go on in order.
CLOCK_STEP_MS = 5 * 60 * 1000
# Where a machine cannot be held back it may owe what its budget makes in so long,
MOST_DEBT_SECONDS = 60.0
# and more when it was not heard for so long: a broker has kept what it sent meanwhile, and even large samples (of 500
# sockets, every 30 s) are less than a hundredth of its budget. Not beyond a day: silence is not to be saved up.
AWAY_SECONDS, MOST_AWAY_SECONDS, BACKLOG_SHARE = 600.0, 86_400.0, 0.01
# A machine that is held back is looked at again so often: more rows may have been charged to it meanwhile.
LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What intake counts; telemetry gives the functions."""

    accepted: Callable[[int, int], None]  # frames, bytes
    refused: Callable[[str], None]  # reason
    duplicate: Callable[[], None]
    dropped_by_agent: Callable[[int], None]  # lines
    other: Callable[[str], None]  # type
    held_back: Callable[[int], None]  # machines that are over their budget and not read on from now
    held_back_seconds: Callable[[float], None]


@dataclass(slots=True)
class _Judged:
    """What came of some lines of one machine: entries to append, and where its sender stands after them."""

    machine_id: UUID
    sender: Sender | None
    entries: list[Entry] = field(default_factory=list)
    answer_to: str | None = None  # the boot_id of numbered lines
    has_gap: bool = False
    unnumbered: int = 0
    # By the type they answer, the latest: a guest cannot make us say more than it is read.
    replies: dict[str, bytes] = field(default_factory=dict)

    def last_seq(self, boot_id: str) -> int:
        sender = self.sender
        return sender.seq or 0 if sender is not None and sender.boot_id == boot_id else 0

    def last_mark(self, boot_id: str) -> str | None:
        sender = self.sender
        return sender.mark if sender is not None and sender.boot_id == boot_id else None

    def follows(self, header: schema.Header) -> bool:
        """Whether a line comes behind the last one that was taken, and not behind another of the same number."""
        last_mark = self.last_mark(header.boot_id)
        return header.seq == self.last_seq(header.boot_id) + 1 and (
            last_mark is None or header.after in (None, last_mark)
        )

    def take(self, payload: bytes | None, header: schema.Header | None, now_ms: int) -> None:
        sender = self.sender
        received_ms = received_at_ms(sender, now_ms)
        boot_id = header.boot_id if header else sender.boot_id if sender else None
        seq = header.seq if header else sender.seq if sender else None
        mark = header.mark if header else sender.mark if sender else None
        # Of a run that comes by a broker some may still be missing.
        below = sender.below if sender and not header else -1
        self.sender = Sender(received_ms, boot_id, seq, mark, below)
        self.unnumbered += header is None
        self.entries.append(Entry(self.machine_id, received_ms, payload, boot_id, seq, mark, below=below))


def received_at_ms(sender: Sender | None, now_ms: int) -> int:
    """The time of receipt of a sender's next frame, unix milliseconds.

    Strictly increasing, the order of its frames; but not ahead for ever of a clock put right.
    """
    if sender is not None and sender.received_at_ms < now_ms + CLOCK_STEP_MS:
        return max(now_ms, sender.received_at_ms + 1)
    return now_ms


class Intake:
    """The gate to the spool, one for all sources. A machine's lines come from one caller at a time."""

    def __init__(self, spool: Spool, counters: Counters, now_ms: Callable[[], int], budget: Budget) -> None:
        self._spool = spool
        self._counters = counters
        self._now_ms = now_ms
        self._budget = budget
        self._held_back = 0
        self._returned: dict[UUID, tuple[float, float]] = {}  # when, and after how long
        self.senders: dict[UUID, Sender] = dict(spool.senders_at_open)
        self._events = events.Allowance()
        self._asked: dict[UUID, tuple[str, int, int]] = {}
        self._broken: dict[UUID, tuple[str, int, int]] = {}

    async def accept(self, machine_id: UUID, lines: Sequence[bytes | Oversize]) -> list[bytes]:
        """Put lines of one machine on disk, in order; returns the lines to answer, without newlines.

        Waits while the spool, or the machine's share of it, is full: the caller then does not read on.
        """
        judged = _Judged(machine_id, self.senders.get(machine_id))
        for line in lines:
            self._judge(line, judged)
        if judged.entries and judged.sender is not None:
            await self._room(judged)
            # From here on these lines are taken, even if the caller is cancelled: the spool will commit them.
            self.senders[machine_id] = judged.sender
            await self._spool.append(judged.entries)
            payloads = [entry.payload for entry in judged.entries if entry.payload is not None]
            self._counters.accepted(len(payloads), sum(map(len, payloads)))
        elif judged.answer_to is not None:
            # A duplicate of a line whose commit is still on its way (its first reader was closed) is not safe yet.
            await self._spool.append(())
        return self._answers(judged)

    async def _room(self, judged: _Judged) -> None:
        try:
            await self._spool.room(judged.machine_id, sum(entry.size_bytes for entry in judged.entries))
        except asyncio.CancelledError:
            # Numbered lines come again; of the others nobody will hear any more.
            for _ in range(judged.unnumbered):
                self._counters.refused("cut_off")
            raise

    async def pace(self, machine_id: UUID, *, size_bytes: int, frames: int) -> None:
        """Charge a machine for what was read of it, and wait until it is within its budget again.

        For a source that reads each machine by itself: back-pressure then costs that machine alone, and loses nothing.
        """
        loop = asyncio.get_running_loop()
        self._budget.charge(machine_id, loop.time(), size_bytes=size_bytes, frames=frames)
        if not self._budget.wait_seconds(machine_id, loop.time()):
            return
        self._count_held_back(1)
        try:
            while wait_seconds := self._budget.wait_seconds(machine_id, began := loop.time()):
                await asyncio.sleep(min(wait_seconds, LOOK_AGAIN_SECONDS))
                self._counters.held_back_seconds(loop.time() - began)
        finally:
            self._count_held_back(-1)

    def _count_held_back(self, change: int) -> None:
        self._held_back += change
        self._counters.held_back(self._held_back)

    def admits(self, machine_id: UUID, size_bytes: int) -> bool:
        """Charge a machine for one frame, or refuse it (counted as `rate`) when it is far over its budget.

        For a source where one connection carries many machines, and waiting for one would hold up all.
        """
        now_seconds = asyncio.get_running_loop().time()
        if self._budget.wait_seconds(machine_id, now_seconds) > self._most_debt_seconds(machine_id, now_seconds):
            self._counters.refused("rate")
            return False
        self._budget.charge(machine_id, now_seconds, size_bytes=size_bytes, frames=1)
        return True

    def _most_debt_seconds(self, machine_id: UUID, now_seconds: float) -> float:
        sender = self.senders.get(machine_id)
        away_seconds = (self._now_ms() - sender.received_at_ms) / 1000 if sender is not None else 0.0
        if away_seconds > AWAY_SECONDS:
            self._returned[machine_id] = (now_seconds, min(away_seconds, MOST_AWAY_SECONDS))
        returned_at_seconds, away_seconds = self._returned.get(machine_id, (now_seconds, 0.0))
        if now_seconds - returned_at_seconds > away_seconds:
            self._returned.pop(machine_id, None)
            return MOST_DEBT_SECONDS
        return MOST_DEBT_SECONDS + away_seconds * BACKLOG_SHARE

    async def forget(self, knows: Callable[[UUID], bool]) -> None:
        """Forget machines that nobody knows any more. Should one come back, the store knows what it has of it."""
        gone = [machine_id for machine_id in self.senders if not knows(machine_id)]
        if not gone:
            return
        for machine_id in gone:
            del self.senders[machine_id]
            self._returned.pop(machine_id, None)
            self._asked.pop(machine_id, None)
            self._broken.pop(machine_id, None)
        await self._spool.forget(gone)

    def charge(self, machine_id: UUID, size_bytes: int) -> None:
        """Charge a machine for a message of which nothing is kept."""
        self._budget.charge(machine_id, asyncio.get_running_loop().time(), size_bytes=size_bytes, frames=1)

    def charge_rows(self, machine_id: UUID, rows: int) -> None:
        """What became of a machine's frames: the writer knows only when they are decoded."""
        self._budget.charge(machine_id, asyncio.get_running_loop().time(), rows=rows)

    def keeps(self, name: str, machine_id: UUID) -> bool:
        """Count a message without metrics, of this type; whether it is an event, and not one too many."""
        self._counters.other(name)
        if name not in events.TYPES:
            return False
        if self._events.take(machine_id, self._now_ms()):
            return True
        self._counters.refused("event_flood")
        return False

    def refuse(self, reason: str) -> None:
        """Count what a source could not even make a line of."""
        self._counters.refused(reason)

    def _judge(self, line: bytes | Oversize, judged: _Judged) -> None:
        head, payload = (line.head, None) if isinstance(line, Oversize) else (line, line)
        if (name := schema.other_type(head)) is not None:
            self._hear(name, payload, judged)
            return
        header = schema.header(head)
        if header is not None and not self._is_next(header, judged):
            return
        if header is not None and payload is not None and self._is_cut_off(header, payload, judged):
            return
        if payload is None:
            self._counters.refused("oversize")
        # An oversize line is not kept, but a numbered one has had its turn: else its agent would send it for ever.
        if payload is not None or header is not None:
            judged.take(payload, header, self._now_ms())

    def _hear(self, name: str, payload: bytes | None, judged: _Judged) -> None:
        """A message without metrics: an event is kept as metrics are, others are counted and some answered."""
        now_ms = self._now_ms()
        is_kept = self.keeps(name, judged.machine_id)
        if payload is None and is_kept:
            self._counters.refused("oversize")
        elif payload is not None and is_kept:
            judged.take(payload, None, now_ms)
        elif payload is not None and (reply := answers.reply(name, payload, from_milliseconds(now_ms))):
            judged.replies[name] = reply

    def _is_next(self, header: schema.Header, judged: _Judged) -> bool:
        """Whether a numbered line follows what is on disk (docs/wire.md); counts it if it does not."""
        judged.answer_to = header.boot_id
        last_seq = judged.last_seq(header.boot_id)
        if header.seq <= last_seq:
            self._counters.duplicate()
            return False
        if header.seq != header.oldest and not judged.follows(header):
            judged.has_gap = True
            # The number is due, the line before is not ours: its machine was put back to a snapshot.
            self._counters.refused("rewound" if header.seq == last_seq + 1 else "out_of_order")
            return False
        if last_seq:  # of an unknown run nothing is missing that we were ever to get
            self._counters.dropped_by_agent(min(header.seq - last_seq - 1, MOST_DROPPED))
        return True

    def _is_cut_off(self, header: schema.Header, payload: bytes, judged: _Judged) -> bool:
        """Whether a numbered line is to be sent again because it is not whole: its channel was cut within it.

        One that comes broken time and again is what its sender means: it is taken, and set aside where it is read.
        """
        if schema.is_json(payload):
            return False
        boot_id, seq, times = self._broken.get(judged.machine_id, ("", 0, 0))
        times = times + 1 if (boot_id, seq) == (header.boot_id, header.seq) else 1
        self._broken[judged.machine_id] = (header.boot_id, header.seq, times)
        if times > BROKEN_TIMES:
            return False
        self._counters.refused("cut_off")
        judged.has_gap = True
        return True

    def _answers(self, judged: _Judged) -> list[bytes]:
        acknowledgement = self._acknowledgement(judged)
        return [*([acknowledgement] if acknowledgement else []), *judged.replies.values()]

    def _acknowledgement(self, judged: _Judged) -> bytes | None:
        boot_id = judged.answer_to
        if boot_id is None:
            return None
        last_seq, mark, now_ms = judged.last_seq(boot_id), judged.last_mark(boot_id), self._now_ms()
        if not judged.has_gap:
            return answers.ack(boot_id, last_seq, mark)
        asked_boot_id, asked_seq, asked_at_ms = self._asked.get(judged.machine_id, ("", 0, 0))
        if (asked_boot_id, asked_seq) == (boot_id, last_seq) and 0 <= now_ms - asked_at_ms < ASK_AGAIN_MS:
            return None
        self._asked[judged.machine_id] = (boot_id, last_seq, now_ms)
        return answers.resend(boot_id, last_seq, mark)
