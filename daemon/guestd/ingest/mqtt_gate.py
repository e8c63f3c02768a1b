"""Messages of a broker become frames on disk: many machines over one connection, so nobody is waited for.

What differs from a channel of one's own (`intake`): there is nobody to answer, so a numbered line is never asked for
again. A line that is settled already is dropped, a gap is counted. A machine beyond its budget or its share of the
spool is refused, and refused means acknowledged: it must not stand in the way of the others. Only a spool that is full
for all makes everybody wait, in the broker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from guestd.core.transport import Transport
from guestd.ingest import replay_window
from guestd.ingest.gate import MOST_DROPPED, Counters, Intake, received_at_ms
from guestd.spool.file import Entry, Sender
from guestd.spool.queue import Spool
from guestd.wire import schema


@dataclass(frozen=True, slots=True)
class Published:
    """One message: whose topic it came on, and its bytes."""

    machine_id: UUID
    payload: bytes


class Publications:
    """The gate to the spool for what a broker delivers; shares its view of every sender with `gate`."""

    def __init__(
        self,
        spool: Spool,
        gate: Intake,
        *,
        counters: Counters,
        missing: Callable[[int], None],
        now_ms: Callable[[], int],
        max_frame_bytes: int,
    ) -> None:
        self._spool = spool
        self._gate = gate
        self._counters = counters
        self._missing = missing
        self._now_ms = now_ms
        self._max_frame_bytes = max_frame_bytes

    async def accept(self, published: Sequence[Published]) -> int:
        """Put messages on disk; returns how many, from the first, are settled and may be acknowledged.

        The others found the spool full: the caller keeps them and comes again. Each machine's are given in order.
        """
        entries: list[Entry] = []
        held: Counter[UUID] = Counter()
        size_bytes = settled = 0
        now_ms = self._now_ms()
        for message in published:
            if not self._spool.fits(len(message.payload), size_bytes):
                break
            settled += 1
            entry = self._judge(message, held, now_ms)
            if entry is not None:
                entries.append(entry)
                held[entry.machine_id] += entry.size_bytes
                size_bytes += entry.size_bytes
        if settled:
            # Without entries too: a duplicate may be of a line whose commit is still on its way.
            await self._spool.append(entries)
            frames = [entry.payload for entry in entries if entry.payload is not None]
            self._counters.accepted(len(frames), sum(map(len, frames)))
        return settled

    def _judge(self, message: Published, held: Counter[UUID], now_ms: int) -> Entry | None:
        machine_id, line = message.machine_id, message.payload
        name = schema.other_type(line)
        if name is not None and not self._gate.keeps(name, machine_id):
            self._gate.charge(machine_id, len(line))
            return None
        header = schema.header(line)
        sender = self._gate.senders.get(machine_id)
        place = None
        if header is not None:
            place = self._placed(header, sender)
            if place is None and _is_settled(header, sender):
                self._counters.duplicate()
                return None
        is_taken = self._takes(message, held[machine_id])
        if not is_taken and header is None:
            return None
        # A numbered line that is refused has had its turn: it is not missing, and does not come again.
        return self._entry(machine_id, line if is_taken else None, header, place, now_ms)

    def _placed(self, header: schema.Header, sender: Sender | None) -> replay_window.Place | None:
        """Where the sender stands with this line; None when it is settled already."""
        if sender is None or sender.boot_id != header.boot_id or sender.seq is None:
            # Of an unknown run nothing is missing that we were ever to get.
            return replay_window.begun(header.seq)
        if header.seq > sender.seq + 1:
            self._missing(min(header.seq - sender.seq - 1, MOST_DROPPED))
        return replay_window.after(replay_window.Place(sender.seq, sender.below), header.seq)

    def _takes(self, message: Published, held_bytes: int) -> bool:
        """Whether a message is within what its machine may send; counts it if it is not."""
        size_bytes = len(message.payload)
        if size_bytes > self._max_frame_bytes:
            self._counters.refused("oversize")
            return False
        if not self._gate.admits(message.machine_id, size_bytes):
            return False
        if not self._spool.has_share(message.machine_id, size_bytes, held_bytes):
            self._counters.refused("share")
            return False
        return True

    def _entry(
        self,
        machine_id: UUID,
        payload: bytes | None,
        header: schema.Header | None,
        place: replay_window.Place | None,
        now_ms: int,
    ) -> Entry:
        sender = self._gate.senders.get(machine_id)
        received_ms = received_at_ms(sender, now_ms)
        if header is not None and place is not None:
            mark = header.mark if place.seq == header.seq else sender.mark if sender else None
            now_at = Sender(received_ms, header.boot_id, place.seq, mark, place.below)
        elif sender is not None:
            now_at = Sender(received_ms, sender.boot_id, sender.seq, sender.mark, sender.below)
        else:
            now_at = Sender(received_ms, None, None)
        self._gate.senders[machine_id] = now_at
        return Entry(
            machine_id, received_ms, payload, now_at.boot_id, now_at.seq, now_at.mark, Transport.MQTT, now_at.below
        )


def _is_settled(header: schema.Header, sender: Sender | None) -> bool:
    """Whether a line whose number is settled is that very line.

    A machine that was put back to a snapshot uses its numbers once more. Only the mark of the last line is kept here;
    of an earlier one the store knows whether it has it, by its mark.
    """
    if header.mark is None or sender is None:
        return True
    return header.seq == sender.seq and header.mark == sender.mark
