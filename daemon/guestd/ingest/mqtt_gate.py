"""The gate of the spool for messages of a broker: many machines over one connection, so none is waited for.

What differs from a channel of a machine's own (`gate`): replies are not possible, so a numbered line is never
requested again. A line that is settled already is dropped, a gap is counted. A machine over its rate limit or its share
of the spool is refused, and refused means acknowledged: it must not block the others. Only when the whole spool is full
does everybody wait, in the broker.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

from guestd.core.transport import Transport
from guestd.ingest import replay_window
from guestd.ingest.decision import get_received_at_ms
from guestd.ingest.gate import MAX_DROPPED, UNMEASURED_BYTES, Gate
from guestd.ingest.replay_window import ReplayWindow
from guestd.spool.file import MOST_OVERHEAD_BYTES, Entry, SenderState
from guestd.spool.queue import Spool
from guestd.telemetry.registry import GateMetrics
from guestd.wire.framing import BLANK
from guestd.wire.line import FRAGMENT, METRICS, Header, Line, is_stored, read_line, read_lines

# The rows of the turn that a frame of a machine took, 0 if it needs none; None, and counted, if it is refused.
Admit = Callable[[UUID, bytes], int | None]


@dataclass(frozen=True, slots=True)
class MachineMessage:
    """One message of a machine, by its topic."""

    machine_id: UUID
    payload: bytes


class MqttGate:
    """The gate of the spool for what a broker delivers; shares the state of every sender with `gate`."""

    def __init__(
        self,
        spool: Spool,
        gate: Gate,
        *,
        metrics: GateMetrics,
        count_missing: Callable[[int], None],
        now_ms: Callable[[], int],
        max_frame_bytes: int,
        cpu_seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        self._spool = spool
        self._gate = gate
        self._metrics = metrics
        self._count_missing = count_missing
        self._now_ms = now_ms
        self._max_frame_bytes = max_frame_bytes
        self._cpu_seconds = cpu_seconds

    async def accept(self, messages: Sequence[MachineMessage]) -> int:
        """Put messages on disk; returns how many, from the first, are settled and may be acknowledged.

        The others found the spool full: the caller keeps them and tries again. Each machine's are passed in order.
        """
        entries: list[Entry] = []
        pending: Counter[UUID] = Counter()
        senders: dict[UUID, SenderState] = {}
        size_bytes = settled = 0
        now_ms = self._now_ms()
        for message in messages:
            if not self._spool.fits(len(message.payload) + MOST_OVERHEAD_BYTES, size_bytes):
                break
            settled += 1
            lines, admit = self._read(message)
            for line in lines:
                entry = self._judge(message.machine_id, line, admit, pending[message.machine_id], senders, now_ms)
                if entry is not None:
                    entries.append(entry)
                    senders[entry.machine_id] = entry.sender
                    pending[entry.machine_id] += entry.size_bytes
                    size_bytes += entry.size_bytes
        # Only now: if something above fails, nothing is settled, and all is delivered again.
        self._gate.senders |= senders
        if settled:
            # Without entries too: a duplicate may be of a line whose commit is still running.
            await self._gate.append(entries)
        return settled

    def _read(self, message: MachineMessage) -> tuple[list[Line], Admit]:
        """The lines of a message, and what says whether its machine's rate admits each.

        What a broker delivers is one line; it may be longer than any line of a channel. What is refused as a whole is
        not searched for several messages, which takes longer than all else.
        """
        machine_id, payload = message.machine_id, message.payload
        try:
            if len(payload) > self._max_frame_bytes:
                self._gate.note_read(machine_id)
                return [read_line(payload.lstrip(BLANK))], self._gate.refuse_for_rate
            rows = self._gate.find_work(machine_id, payload)
            if rows is None:
                return [read_line(payload.lstrip(BLANK))], self._gate.refuse_for_rate
            is_measured = len(payload) > UNMEASURED_BYTES
            began = self._cpu_seconds() if is_measured else 0.0
            try:
                lines = read_lines(payload)
            finally:
                # Of a duplicate, or a message that is not stored, nothing else is charged as work.
                if is_measured:
                    self._gate.charge_reading(machine_id, self._cpu_seconds() - began)
            if not lines:
                self._gate.charge(machine_id, len(payload))
        except Exception as exc:
            self._gate.note_bug(machine_id, exc)
            return [Line(METRICS, None, payload)], self._gate.admit
        # One line is the message, whose work is known.
        return lines, partial(self._gate.take, rows) if len(lines) == 1 else self._gate.admit

    def _judge(
        self,
        machine_id: UUID,
        line: Line,
        admit: Admit,
        pending_bytes: int,
        senders: Mapping[UUID, SenderState],
        now_ms: int,
    ) -> Entry | None:
        """Decide about a line. One that triggers a bug is kept: otherwise the broker would deliver it for ever.

        Its number is not settled; the store knows by it whether it has the line.
        """
        sender = senders.get(machine_id, self._gate.senders.get(machine_id))
        try:
            return self._decide(machine_id, line, admit, sender, pending_bytes, now_ms)
        except Exception as exc:
            self._gate.note_bug(machine_id, exc)
            payload = line.payload or b""
            if not is_stored(line) or not self._has_room(machine_id, len(payload), pending_bytes):
                return None
            return Entry(machine_id, line, _get_state(sender, None, None, now_ms), Transport.MQTT)

    def _decide(
        self, machine_id: UUID, line: Line, admit: Admit, sender: SenderState | None, pending_bytes: int, now_ms: int
    ) -> Entry | None:
        size_bytes = len(line.payload or b"")
        if line.kind != METRICS and not self._admits_message(line.kind, machine_id):
            self._gate.charge(machine_id, size_bytes)
            return None
        window = None
        if line.header is not None:
            window = self._advance(line.header, sender)
            if window is None and _is_settled(line.header, sender):
                self._metrics.duplicate.inc()
                self._gate.charge(machine_id, size_bytes)
                return None
        has_room = self._has_room(machine_id, size_bytes, pending_bytes)
        heavy_rows = admit(machine_id, line.payload or b"") if has_room else None
        if heavy_rows is None and line.header is None:
            return None
        state = _get_state(sender, line.header, window, now_ms)
        # A numbered line that is refused is settled: it is not missing, and does not come again.
        if heavy_rows is None:
            return Entry(machine_id, replace(line, payload=None), state, Transport.MQTT)
        return Entry(machine_id, line, state, Transport.MQTT, heavy_rows)

    def _advance(self, header: Header, sender: SenderState | None) -> ReplayWindow | None:
        """The sender's window with this line; None when it is settled already."""
        if sender is None or sender.boot_id != header.boot_id or sender.seq is None:
            # Of an unknown run nothing is missing that we were ever to get.
            return replay_window.start(header.seq)
        if header.seq > sender.seq + 1:
            self._count_missing(min(header.seq - sender.seq - 1, MAX_DROPPED))
        return replay_window.advance(ReplayWindow(sender.seq, sender.below), header.seq)

    def _admits_message(self, kind: str, machine_id: UUID) -> bool:
        if kind == FRAGMENT:
            self._gate.refuse(FRAGMENT)
            return False
        return self._gate.admit_message(kind, machine_id)

    def _has_room(self, machine_id: UUID, size_bytes: int, pending_bytes: int) -> bool:
        """Whether a line is within the size limit and its machine's share of the spool; counts it if it is not."""
        reason = "oversize" if size_bytes > self._max_frame_bytes else "share"
        if reason == "share" and self._spool.has_share(machine_id, size_bytes + MOST_OVERHEAD_BYTES, pending_bytes):
            return True
        self._metrics.refused.labels(reason).inc()
        return False


def _get_state(
    sender: SenderState | None, header: Header | None, window: ReplayWindow | None, now_ms: int
) -> SenderState:
    """The state of a sender after a line."""
    received_ms = get_received_at_ms(sender, now_ms)
    if header is not None and window is not None:
        mark = header.mark if window.seq == header.seq else sender.mark if sender else None
        return SenderState(received_ms, header.boot_id, window.seq, mark, window.below)
    if sender is not None:
        return replace(sender, received_at_ms=received_ms)
    return SenderState(received_ms, None, None)


def _is_settled(header: Header, sender: SenderState | None) -> bool:
    """Whether a line whose number is settled is that very line.

    A machine that was put back to a snapshot uses its numbers again. Only the mark of the last line is kept here; of an
    earlier one the store knows whether it has it, by its mark.
    """
    if header.mark is None or sender is None:
        return True
    return header.seq == sender.seq and header.mark == sender.mark
