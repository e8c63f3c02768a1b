"""The largest packet that a broker takes: what it announces, or what its refusals show where it announces nothing.

mosquitto's `message_size_limit` is announced nowhere. No clock, no I/O: times are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestd.core.broker import PROTOCOL_PACKET_BYTES

# What is learned never goes below this.
SMALLEST_LEARNED_BYTES = 4096
# Whole lines are tried again after this time: the operator may have raised the limit.
LEARNED_SECONDS = 3600.0


@dataclass(slots=True)
class PacketLimit:
    """The limit in bytes of a whole packet.

    One refusal shows nothing: a broker may have sent one wrong packet. The second in a row halves the size, and so does
    each that follows, until a line is accepted at the size that is tried.
    """

    announced_bytes: int = PROTOCOL_PACKET_BYTES
    _learned_bytes: int = PROTOCOL_PACKET_BYTES
    _learned_until: float = 0.0
    _refused_bytes: int = 0

    def get_bytes(self, now: float) -> int:
        """The largest packet to send at a monotonic time."""
        if now >= self._learned_until:
            self._learned_bytes = PROTOCOL_PACKET_BYTES
        return min(self.announced_bytes, self._learned_bytes)

    def note_refused(self, size_bytes: int, now: float) -> None:
        """The connection ended because a line was too large; the largest that was in flight had so many bytes."""
        if self._refused_bytes:
            self._learned_bytes = max(SMALLEST_LEARNED_BYTES, size_bytes // 2)
            self._learned_until = now + LEARNED_SECONDS
        self._refused_bytes = size_bytes

    def note_accepted(self, size_bytes: int, *, is_shortened: bool) -> None:
        """The broker accepted a line of so many bytes."""
        if is_shortened or size_bytes >= self._refused_bytes:
            self._refused_bytes = 0
