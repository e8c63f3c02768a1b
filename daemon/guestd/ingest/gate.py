"""The gate of the spool: lines of a machine's own channel become frames on disk, or are refused.

Size, rate, channel and sequence are checked here, before anything is accepted. Accepted means fsynced in the spool.
What is not accepted is counted by its reason and, where its sender can send it again, not acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

from guestd.core.bugs import BugLog
from guestd.core.errors import BadFrame
from guestd.ingest.decision import Decision
from guestd.ingest.rate_limit import RateLimit
from guestd.ingest.turns import TURN_ROWS, Turns, estimate_rows, least_rows, rows_beyond_estimate
from guestd.rows.batch import Prepared
from guestd.rows.model import Rows
from guestd.spool.file import Entry, SenderState, from_milliseconds
from guestd.spool.queue import Spool
from guestd.store.batch_writer import Outcome
from guestd.telemetry.registry import GateMetrics
from guestd.wire import events, replies
from guestd.wire.line import FRAGMENT, METRICS, Header, Line, is_stored, is_whole

# An agent needs this long to read a resend request and to write again; lines that it wrote before cause no other one.
RESEND_REQUEST_MS = 1000
# A truncated line is requested again this often before it is accepted as it is.
TRUNCATED_RETRIES = 3
# The most that one line may add to the count of dropped lines: the number is only a guest's claim.
MAX_DROPPED = 1_000_000
# A machine that cannot be held back may owe as much as its rate limit allows in this time,
MAX_DEBT_SECONDS = 60.0
# and more after a silence of this length: a broker has queued what it sent meanwhile, and even large samples (of 500
# sockets, every 30 s) are less than a hundredth of the limit. After a day of silence it allows no more.
AWAY_SECONDS, MAX_AWAY_SECONDS, BACKLOG_SHARE = 600.0, 86_400.0, 0.01
# A machine of which nothing is known may have a backlog as well: its agent was there before guestd, its VM came from
# another host, or the spool was lost. A full buffer of our agent (8 MiB) is up to 200 s of what needs no turn.
UNKNOWN_SILENT_MS = 240_000
# A machine that is held back is checked again this often: more rows may have been charged to it meanwhile.
RECHECK_SECONDS = 1.0
# The same for the machine whose turn is next,
TURN_RECHECK_SECONDS = 0.05
# unless the store has taken nothing for so long: then everybody waits, and the spool is there to take what comes.
STORE_SILENT_SECONDS = 5.0
# Bytes of lines that wait in memory for their machine's turn; further ones wait on disk.
MAX_WAITING_BYTES = 32 * 1024 * 1024
# Merging an entry of an inventory that has changed takes as long as so many rows more.
MERGE_ROWS = 3
# The same for bytes of a frame that is quarantined whole.
QUARANTINED_BYTES_PER_ROW = 256
# The same for the processor's time that reading a message takes.
READ_ROWS_PER_SECOND = 50_000
# Of shorter ones it is less than a row's, and measuring it takes longer: two system calls.
UNMEASURED_BYTES = 256
# When a machine returned that was never silent, and after how long.
_NEVER = (0.0, 0.0)


class Gate:
    """The gate of the spool, one for all sources. A machine's lines come from one caller at a time."""

    def __init__(self, spool: Spool, metrics: GateMetrics, now_ms: Callable[[], int], rate_limit: RateLimit) -> None:
        self._spool = spool
        self._metrics = metrics
        self._now_ms = now_ms
        self._rate_limit = rate_limit
        self._returned: dict[UUID, tuple[float, float]] = {}  # when, and after how long
        self._read_ms: dict[UUID, int] = {}
        self._turns = Turns()
        self._next_turn = asyncio.Lock()
        self._waiting_bytes = 0
        self.senders: dict[UUID, SenderState] = dict(spool.senders_at_open)
        self._events = events.EventLimiter()
        self._bugs = BugLog()
        self._resend_requests: dict[UUID, tuple[str, int, int]] = {}
        self._truncated: dict[UUID, tuple[str, int, int]] = {}

    async def accept(self, machine_id: UUID, lines: Sequence[Line]) -> list[bytes]:
        """Put lines of one machine on disk, in order; returns the lines to reply, without newlines.

        Waits while the spool, or the machine's share of it, is full: the caller then stops reading.
        """
        decision = Decision(machine_id, self.senders.get(machine_id))
        for line in lines:
            self._judge(line, decision)
        if decision.entries and decision.sender is not None:
            entries = self._charge_rows_of(decision)
            await self._wait_for_room(decision)
            # From here on these lines are settled, even if the caller is cancelled: the spool will commit them.
            self.senders[machine_id] = decision.sender
            self._metrics.agent_dropped.inc(decision.agent_dropped)
            await self.append(entries)
        elif decision.answer_to is not None:
            # A duplicate of a line whose commit is still running (its first reader was closed) is not safe yet.
            await self._spool.append(())
        return self._replies(decision)

    async def append(self, entries: Sequence[Entry]) -> None:
        """Put frames on disk and count them as accepted."""
        try:
            await self._spool.append(entries)
        finally:
            # Also if the caller is cancelled: the spool commits them all the same, and the writer will count them.
            # (Not if the spool itself fails, which ends guestd.)
            payloads = [entry.line.payload for entry in entries if entry.line.payload is not None]
            self._metrics.accepted.inc(len(payloads))
            self._metrics.accepted_bytes.inc(sum(map(len, payloads)))

    async def _wait_for_room(self, decision: Decision) -> None:
        try:
            await self._spool.wait_for_room(decision.machine_id, sum(entry.size_bytes for entry in decision.entries))
        except asyncio.CancelledError:
            # Numbered lines are sent again; the others are lost.
            self._metrics.refused.labels("cut_off").inc(decision.unnumbered)
            raise

    def _charge_rows_of(self, decision: Decision) -> Sequence[Entry]:
        """Charge a machine for the rows of its entries; the entries, with the work of those that need a turn."""
        machine_id, now_seconds = decision.machine_id, asyncio.get_running_loop().time()
        self._rate_limit.charge(machine_id, now_seconds, rows=decision.rows)
        if self._turns.take_light(machine_id, now_seconds, decision.rows, 0.0):
            return decision.entries
        self._turns.take_turn(now_seconds, decision.rows)
        return [replace(entry, heavy_rows=decision.rows // len(decision.entries) + 1) for entry in decision.entries]

    async def wait_for_turn(self, machine_id: UUID, lines: Sequence[bytes]) -> None:
        """Wait until these lines of a machine may be accepted without delaying the others; `accept` takes the turn.

        Returns at once for a machine that sends little, and when memory is short. A silence counts for nothing here:
        a backlog on a channel waits without loss.
        """
        loop = asyncio.get_running_loop()
        rows, size_bytes, began = sum(map(estimate_rows, lines)), sum(map(len, lines)), loop.time()
        if self._turns.is_light(machine_id, began, rows, 0.0):
            return
        self._turns.note_heavy(machine_id, began)
        if self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            return
        self._waiting_bytes += size_bytes
        try:
            with self._metrics.held_back.track_inprogress():
                async with self._next_turn:
                    while not self._has_turn(rows, loop.time()):
                        await self._spool.wait_for_trim(TURN_RECHECK_SECONDS)
        finally:
            self._waiting_bytes -= size_bytes
            self._metrics.held_back_seconds.inc(loop.time() - began)

    def _has_turn(self, rows: int, now_seconds: float) -> bool:
        """Whether frames of a heavy machine may go now."""
        if self._turns.are_most_heavy(now_seconds):
            return True
        waiting_rows = self._spool.heavy_rows
        is_little = not waiting_rows or waiting_rows + rows <= TURN_ROWS
        return not self._turns.wait_seconds(now_seconds) and (
            is_little or self._spool.idle_seconds > STORE_SILENT_SECONDS
        )

    async def pace(self, machine_id: UUID, *, size_bytes: int, frames: int) -> None:
        """Charge a machine for what was read of it, and wait until it is within its rate limit again.

        For a source that reads each machine by itself: back-pressure then costs that machine alone, and loses nothing.
        """
        loop = asyncio.get_running_loop()
        self.note_read(machine_id)
        self._rate_limit.charge(machine_id, loop.time(), size_bytes=size_bytes, frames=frames)
        if not self._rate_limit.wait_seconds(machine_id, loop.time()):
            return
        with self._metrics.held_back.track_inprogress():
            while wait_seconds := self._rate_limit.wait_seconds(machine_id, began := loop.time()):
                await asyncio.sleep(min(wait_seconds, RECHECK_SECONDS))
                self._metrics.held_back_seconds.inc(loop.time() - began)

    def admits(self, machine_id: UUID, payload: bytes) -> bool:
        """Whether a frame of a machine would be admitted now."""
        return self.find_work(machine_id, payload) is not None

    def find_work(self, machine_id: UUID, payload: bytes) -> int | None:
        """The work of a frame in rows, if it would be admitted now: for `take`. None if it would not."""
        now_seconds = asyncio.get_running_loop().time()
        self.note_read(machine_id)
        silent_seconds = self._silent_seconds(machine_id, now_seconds)
        allowed_seconds = MAX_DEBT_SECONDS + (silent_seconds * BACKLOG_SHARE if silent_seconds > AWAY_SECONDS else 0.0)
        if self._rate_limit.wait_seconds(machine_id, now_seconds) > allowed_seconds:
            return None

        def is_admitted(rows: int) -> bool:
            is_light = self._turns.is_light(machine_id, now_seconds, rows, silent_seconds)
            return is_light or self._has_turn(rows, now_seconds)

        # Most of what is refused is so for its size alone, which takes no time to find.
        if not is_admitted(least_rows(payload)):
            return None
        rows = estimate_rows(payload)
        return rows if is_admitted(rows) else None

    def admit(self, machine_id: UUID, payload: bytes) -> int | None:
        """Charge a machine for one frame and return the rows of the turn that it took, 0 if it needs none.

        None: it is refused (counted as `rate`). For a source where one connection carries many machines, and waiting
        for one would delay all.
        """
        rows = self.find_work(machine_id, payload)
        if rows is None:
            self.refuse_for_rate(machine_id, payload)
            return None
        return self.take(rows, machine_id, payload)

    def take(self, rows: int, machine_id: UUID, payload: bytes) -> int:
        """What `admit` does with a frame of so much work that is admitted."""
        now_seconds, heavy_rows = asyncio.get_running_loop().time(), 0
        if not self._turns.take_light(machine_id, now_seconds, rows, self._silent_seconds(machine_id, now_seconds)):
            self._turns.take_turn(now_seconds, rows)
            heavy_rows = rows
        self._rate_limit.charge(machine_id, now_seconds, size_bytes=len(payload), frames=1, rows=rows)
        return heavy_rows

    def refuse_for_rate(self, machine_id: UUID, _payload: bytes) -> None:
        """What `admit` does with a frame that is not admitted."""
        self.refuse("rate")
        self._turns.note_heavy(machine_id, asyncio.get_running_loop().time())

    def note_read(self, machine_id: UUID) -> None:
        """Note that something of a machine was read, whatever is kept of it, and how long nothing was before."""
        now_seconds = asyncio.get_running_loop().time()
        now_ms, last_ms = self._now_ms(), self._read_ms.get(machine_id)
        self._read_ms[machine_id] = now_ms
        if last_ms is None:
            sender = self.senders.get(machine_id)
            last_ms = now_ms - UNKNOWN_SILENT_MS if sender is None else sender.received_at_ms
        silent_seconds = min((now_ms - last_ms) / 1000, MAX_AWAY_SECONDS)
        returned_at_seconds, counted_seconds = self._returned.get(machine_id, _NEVER)
        if silent_seconds > counted_seconds - (now_seconds - returned_at_seconds):
            self._returned[machine_id] = (now_seconds, silent_seconds)

    def _silent_seconds(self, machine_id: UUID, now_seconds: float) -> float:
        """How long a machine was silent before what it sends now; for as long again that counts."""
        returned_at_seconds, counted_seconds = self._returned.get(machine_id, _NEVER)
        return counted_seconds if now_seconds - returned_at_seconds <= counted_seconds else 0.0

    async def forget(self, is_known: Callable[[UUID], bool]) -> None:
        """Forget machines that are gone. Should one return, the store knows what it has of it."""
        # Of one that sent nothing to store there is no sender.
        gone = [machine_id for machine_id in self.senders | self._read_ms if not is_known(machine_id)]
        if not gone:
            return
        for machine_id in gone:
            self.senders.pop(machine_id, None)
            self._read_ms.pop(machine_id, None)
            self._returned.pop(machine_id, None)
            self._resend_requests.pop(machine_id, None)
            self._truncated.pop(machine_id, None)
        await self._spool.forget(gone)

    def charge(self, machine_id: UUID, size_bytes: int) -> None:
        """Charge a machine for a message of which nothing is stored."""
        self._rate_limit.charge(machine_id, asyncio.get_running_loop().time(), size_bytes=size_bytes, frames=1)

    def charge_reading(self, machine_id: UUID, cpu_seconds: float) -> None:
        """Charge a machine for reading its message, also if nothing of it is kept: a broken one takes long."""
        now_seconds, rows = asyncio.get_running_loop().time(), int(cpu_seconds * READ_ROWS_PER_SECOND)
        self._rate_limit.charge(machine_id, now_seconds, rows=rows)
        self._turns.charge_reading(machine_id, now_seconds, rows, self._silent_seconds(machine_id, now_seconds))

    def charge_batch(self, batch: Sequence[Prepared]) -> None:
        """Charge machines for rows of a batch that were not estimated: of a frame that is more than it seemed."""
        for frame in batch:
            if isinstance(frame.content, Rows):
                self.charge_rows(frame.machine_id, rows_beyond_estimate(frame.content.count, frame.payload))
            elif isinstance(frame.content, BadFrame):
                self.charge_rows(frame.machine_id, len(frame.payload) // QUARANTINED_BYTES_PER_ROW)

    def charge_outcome(self, outcome: Outcome) -> None:
        """Charge machines for the entries of their inventories that had to be merged, and for time, what it took."""
        self._turns.note_stored(outcome.machine_ids, asyncio.get_running_loop().time(), outcome.seconds)
        for machine_id, entries in outcome.merged.items():
            self.charge_rows(machine_id, entries * MERGE_ROWS)

    def charge_rows(self, machine_id: UUID, rows: int) -> None:
        """Charge a machine for rows that its frames had and that were not estimated, if there are any."""
        if rows > 0:
            now_seconds = asyncio.get_running_loop().time()
            self._rate_limit.charge(machine_id, now_seconds, rows=rows)
            self._turns.charge(machine_id, now_seconds, rows)

    def admit_message(self, kind: str, machine_id: UUID) -> bool:
        """Count a message without metrics; whether it is an event to store, within the machine's allowance."""
        self._metrics.other_messages.labels(kind).inc()
        if kind not in events.TYPES:
            return False
        if self._events.admit(machine_id, self._now_ms()):
            return True
        self._metrics.refused.labels("event_flood").inc()
        return False

    def refuse(self, reason: str, lines: int = 1) -> None:
        """Count lines that a source could not read."""
        self._metrics.refused.labels(reason).inc(lines)

    def note_bug(self, machine_id: UUID, exc: Exception) -> None:
        """Log and count what a line of a machine has raised here; MemoryError is no line's fault and is raised."""
        if isinstance(exc, MemoryError):
            raise exc
        self._metrics.bugs.inc()
        self._bugs.error(
            "line triggered a bug in guestd, accepting it without its checks; report the traceback",
            exc,
            machine=str(machine_id),
        )

    def _judge(self, line: Line, decision: Decision) -> None:
        """Decide about a line. One that triggers a bug is accepted where it is due: its sender would repeat it."""
        try:
            self._decide(line, decision)
        except Exception as exc:
            self.note_bug(decision.machine_id, exc)
            if decision.entries and decision.entries[-1].line is line:
                return
            header = line.header
            if header is not None:
                decision.answer_to = header.boot_id
                if header.seq <= decision.last_seq(header.boot_id):
                    return
                if header.seq != header.oldest and not decision.is_next(header):
                    decision.has_gap = True
                    return
            if is_stored(line) and line.payload is not None:
                decision.accept(line, self._now_ms())

    def _decide(self, line: Line, decision: Decision) -> None:
        if line.kind != METRICS:
            self._decide_message(line, decision)
            return
        header = line.header
        if header is not None and not self._is_next(header, decision):
            return
        if header is not None and self._is_truncated(header, line, decision):
            return
        # Of an unknown run nothing is missing that we were ever to get.
        if header is not None and (last_seq := decision.last_seq(header.boot_id)):
            decision.agent_dropped += min(header.seq - last_seq - 1, MAX_DROPPED)
        if line.payload is None:
            self._metrics.refused.labels("oversize").inc()
        # An oversize line is not stored, but a numbered one is settled, or its agent would resend it without end.
        if line.payload is not None or header is not None:
            decision.accept(line, self._now_ms())

    def _decide_message(self, line: Line, decision: Decision) -> None:
        """A message without metrics: an event is stored as metrics are, others are counted and some get a reply."""
        if line.kind == FRAGMENT:
            self.refuse(FRAGMENT)
            return
        now_ms = self._now_ms()
        is_admitted = self.admit_message(line.kind, decision.machine_id)
        if line.payload is None and is_admitted:
            self._metrics.refused.labels("oversize").inc()
        elif line.payload is not None and is_admitted:
            decision.accept(line, now_ms)
        elif line.payload is not None:
            reply = replies.reply(line.kind, line.payload, from_milliseconds(now_ms))
            if reply is not None:
                decision.replies[line.kind] = reply

    def _is_next(self, header: Header, decision: Decision) -> bool:
        """Whether a numbered line follows what is on disk (docs/wire.md); counts it if it does not."""
        decision.answer_to = header.boot_id
        last_seq = decision.last_seq(header.boot_id)
        if header.seq <= last_seq:
            self._metrics.duplicate.inc()
            return False
        if header.seq != header.oldest and not decision.is_next(header):
            decision.has_gap = True
            # The number is due, but it follows a line that is not ours: its machine was put back to a snapshot.
            self._metrics.refused.labels("rewound" if header.seq == last_seq + 1 else "out_of_order").inc()
            return False
        return True

    def _is_truncated(self, header: Header, line: Line, decision: Decision) -> bool:
        """Whether a numbered line has to be sent again because its channel was cut within it.

        One that arrives truncated every time is what its sender means: it is accepted, and quarantined later.
        """
        if line.payload is None or is_whole(line.payload):
            return False
        boot_id, seq, times = self._truncated.get(decision.machine_id, ("", 0, 0))
        times = times + 1 if (boot_id, seq) == (header.boot_id, header.seq) else 1
        self._truncated[decision.machine_id] = (header.boot_id, header.seq, times)
        if times > TRUNCATED_RETRIES:
            return False
        self._metrics.refused.labels("cut_off").inc()
        decision.has_gap = True
        return True

    def _replies(self, decision: Decision) -> list[bytes]:
        acknowledgement = self._acknowledgement(decision)
        return [*([acknowledgement] if acknowledgement else []), *decision.replies.values()]

    def _acknowledgement(self, decision: Decision) -> bytes | None:
        boot_id = decision.answer_to
        if boot_id is None:
            return None
        last_seq, mark, now_ms = decision.last_seq(boot_id), decision.last_mark(boot_id), self._now_ms()
        if not decision.has_gap:
            return replies.ack(boot_id, last_seq, mark)
        last_boot_id, requested_seq, requested_ms = self._resend_requests.get(decision.machine_id, ("", 0, 0))
        is_same = (last_boot_id, requested_seq) == (boot_id, last_seq)
        if is_same and 0 <= now_ms - requested_ms < RESEND_REQUEST_MS:
            return None
        self._resend_requests[decision.machine_id] = (boot_id, last_seq, now_ms)
        return replies.resend(boot_id, last_seq, mark)
