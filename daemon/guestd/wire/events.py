"""Guest messages that report an event become one row each, limited in size. Pure.

The channel determines the machine. Agents that do not know their machine's id invent one and send it in every such
message: it is stored in the detail and not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from uuid import UUID

import msgspec

from guestd.core.errors import BadFrame
from guestd.wire import limits
from guestd.wire.line import SYNTAX_ERRORS
from guestd.wire.repair import make_readable, remove_unstorable

# More than an agent with problems sends, and little for maintenance to delete after ten minutes of a flood.
EVENTS_A_MINUTE = 120
_MINUTE_MS = 60_000

# By type: the members that become severity and message. The others become the detail.
_EVENT_FIELDS: Mapping[str, tuple[str, str]] = {
    "agent_event": ("severity", "message"),
    "circuit_breaker_state": ("", "state"),
    "connection_status": ("", "state"),
    "error_report": ("severity", "error_type"),
    "firewall_event": ("", "event_type"),
    "script_completion": ("", "exit_code"),
}
TYPES = frozenset(_EVENT_FIELDS)
# A script's output may contain secrets, and the platform stores it elsewhere: only its size is stored here.
_OUTPUTS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Event:
    """One row of GuestEvent; `detail` is a JSON object of at most limits.EVENT_BYTES."""

    id: UUID
    machine_id: UUID
    received_at: datetime
    type: str
    severity: str | None
    message: str | None
    detail: str


def read_event(payload: bytes, *, machine_id: UUID, received_at: datetime) -> Event:
    """Read an event from a line; `BadFrame` with reason json, shape or type. The same frame gives the same id."""
    if _texts(payload) > limits.EVENT_TEXTS:
        raise BadFrame("shape", f"more than {limits.EVENT_TEXTS} texts")
    members = _members(payload)
    name = str(_value(members.pop("type")))
    severity, message = (_text(_value(members.pop(member, None))) for member in _EVENT_FIELDS[name])
    for output in _OUTPUTS:
        if output in members:
            members[f"{output}_bytes"] = msgspec.Raw(b"%d" % len(memoryview(members.pop(output))))
    return Event(
        id=_id(machine_id, received_at.isoformat().encode(), payload),
        machine_id=machine_id,
        received_at=received_at,
        type=name,
        severity=severity and severity[: limits.STATE_CHARS],
        message=message and message[: limits.EVENT_CHARS],
        detail=_detail(members),
    )


def with_repeatable_id(event: Event, payload: bytes) -> Event:
    """The event with an id from its bytes alone, as a broker may deliver it again; unchanged without a timestamp."""
    if _value(_members(payload).get("timestamp")) is None:
        return event
    return replace(event, id=_id(event.machine_id, b"", payload))


def _id(machine_id: UUID, moment: bytes, payload: bytes) -> UUID:
    identity = b"%s %s %s" % (machine_id.bytes, moment, payload)
    return UUID(bytes=blake2b(identity, digest_size=16).digest(), version=4)


def _texts(payload: bytes) -> int:
    """The number of texts, at least half of it: a quote within a text has a backslash before it."""
    return (payload.count(b'"') - payload.count(b'\\"')) // 2


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _members(payload: bytes) -> dict[str, msgspec.Raw]:
    text = remove_unstorable(payload)
    for candidate in (text, make_readable(text)):
        with suppress(*SYNTAX_ERRORS):
            members = _OBJECT.decode(candidate)
            if str(_value(members.get("type"))) in TYPES:
                return members
    raise BadFrame("json", "an event that cannot be read")


def _value(raw: msgspec.Raw | None) -> object:
    """A member, cut to its limits; None when it is too long or no type can hold it."""
    if raw is None or len(memoryview(raw)) > limits.PART_BYTES:
        return None
    for text in (bytes(raw), make_readable(bytes(raw))):
        with suppress(*SYNTAX_ERRORS):
            return _bounded(msgspec.json.decode(text), limits.EVENT_DEPTH)
    return None


def _text(value: object) -> str | None:
    """A member as text; its JSON when it is not text."""
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _detail(members: Mapping[str, msgspec.Raw]) -> str:
    detail = {name[: limits.NAME_CHARS]: _value(raw) for name, raw in list(members.items())[: limits.EVENT_MEMBERS]}
    encoded = msgspec.json.encode(detail)
    if len(encoded) <= limits.EVENT_BYTES:
        return encoded.decode()
    return msgspec.json.encode({"too_long_bytes": len(encoded)}).decode()


def _bounded(value: object, depth: int) -> object:
    """A JSON value with its texts, lists and objects cut to their limits, and without what is nested too deep."""
    if isinstance(value, str):
        return value[: limits.EVENT_CHARS]
    if not isinstance(value, dict | list):
        return value
    if not depth:
        return None
    if isinstance(value, list):
        return [_bounded(each, depth - 1) for each in value[: limits.EVENT_MEMBERS]]
    members = list(value.items())[: limits.EVENT_MEMBERS]
    return {name[: limits.NAME_CHARS]: _bounded(each, depth - 1) for name, each in members}


class EventLimiter:
    """Limits the events of each machine in a minute."""

    def __init__(self, events_a_minute: int = EVENTS_A_MINUTE) -> None:
        self._events_a_minute = events_a_minute
        self._minute = 0
        self._counts: dict[UUID, int] = {}

    def admit(self, machine_id: UUID, now_ms: int) -> bool:
        """Count an event; False when the machine has reached its limit."""
        minute = now_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self._counts = minute, {}
        self._counts[machine_id] = count = self._counts.get(machine_id, 0) + 1
        return count <= self._events_a_minute
