"""What every client of an MQTT broker needs: the text of the broker's reasons, and the signs of a second client with
its id. No driver: the daemon and the agent pass what theirs has parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guestd.core.tasks import Backoff

SESSION_TAKEN_OVER = 0x8E
PACKET_TOO_LARGE = 0x95
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B
# Of a broker that announces no Maximum Packet Size: the protocol's own, MQTT 5, 2.1.4.
PROTOCOL_PACKET_BYTES = 268_435_455 + 5
# While two clients have one id, each connects again this seldom.
TAKEN_OVER_SECONDS = 60.0
# A connection that lived this long shows that there is no other client any more. Two that wait for TAKEN_OVER_SECONDS
# each live about that long, which is a healthy time for everything else.
UNDISTURBED_SECONDS = 3600.0
# A broker of MQTT 3.1.1 closes without a reason. So many connections in a row that it closed this soon are a sign.
# MQTT 5 has a reason for it: SESSION_TAKEN_OVER.
EARLY_SECONDS = 120.0
EARLY_CLOSES = 3


def describe_reason(reason: object, properties: object, remedies: Mapping[str, str]) -> str:
    """A reason of CONNACK, PUBACK or DISCONNECT as text: its name, what the broker adds to it, and what to do about it.

    `properties` has the attributes `ReasonString` and `ServerReference` where the broker sent them.
    """
    parts = [
        remedies.get(str(reason), ""),
        *(str(getattr(properties, name, "")) for name in ("ReasonString", "ServerReference")),
    ]
    added = "; ".join(part for part in parts if part)
    return f"{reason} ({added})" if added else str(reason)


def count_packet_bytes(topic: str, payload_bytes: int) -> int:
    """The bytes of a PUBLISH packet at most: MQTT 5, 2.1 and 3.3, without properties."""
    type_and_length, topic_length, packet_id, properties = 5, 2, 2, 1
    return type_and_length + topic_length + len(topic.encode()) + packet_id + properties + payload_bytes


@dataclass(slots=True)
class TakeoverWatch:
    """Recognises another client with our id, and has `backoff` wait longer then, so that one of the two can work.

    Each connection of the one ends the connection of the other, without end.
    """

    backoff: Backoff
    early_closes: int = 0
    usual_cap_seconds: float = field(init=False)
    usual_healthy_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.usual_cap_seconds = self.backoff.cap_seconds
        self.usual_healthy_seconds = self.backoff.healthy_seconds

    def note_end(self, lived_seconds: float | None, *, is_taken_over: bool, is_closed: bool) -> bool:
        """Note the end of a connection; returns whether another client seems to have our id.

        `lived_seconds`: since the broker accepted it, None if it did not. `is_closed`: by a broker without reasons.
        """
        is_early = is_closed and lived_seconds is not None and lived_seconds < EARLY_SECONDS
        self.early_closes = self.early_closes + 1 if is_early or is_taken_over else 0
        is_suspected = is_taken_over or self.early_closes >= EARLY_CLOSES
        self.backoff.cap_seconds = TAKEN_OVER_SECONDS if is_suspected else self.usual_cap_seconds
        self.backoff.healthy_seconds = UNDISTURBED_SECONDS if is_suspected else self.usual_healthy_seconds
        return is_suspected
