"""Guest messages that tell of something that happened become events, one row each, bounded. Pure.

Whose event it is is told by the channel. Agents that were not given their machine's id make one up and name it in every
such message: what they claim is kept in the detail and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from uuid import UUID

import msgspec

from guestd.core.errors import BadFrame
from guestd.wire import limits
from guestd.wire.line import SYNTAX_ERRORS, is_value, restarts
from guestd.wire.repair import readable, storable

# More than an agent in trouble sends; what maintenance finds to trim after ten minutes of a flood is little.
EVENTS_A_MINUTE = 120
_MINUTE_MS = 60_000

# By type: the members that become severity and message. The rest is the detail.
_TOLD_BY: Mapping[str, tuple[str, str]] = {
    "agent_event": ("severity", "message"),
    "circuit_breaker_state": ("", "state"),
    "connection_status": ("", "state"),
    "error_report": ("severity", "error_type"),
    "firewall_event": ("", "event_type"),
    "script_completion": ("", "exit_code"),
}
TYPES = frozenset(_TOLD_BY)
# What a script printed may be any secret, and the platform keeps it elsewhere: here is kept how much it was.
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


def event_of(payload: bytes, *, machine_id: UUID, received_at: datetime) -> Event:
    """One line to an event; raises `BadFrame` with reason json, shape or type. The same frame gives the same id."""
    if _texts(payload) > limits.EVENT_TEXTS:
        raise BadFrame("shape", f"more than {limits.EVENT_TEXTS} texts")
    members = _members(payload)
    name = str(_value(members.pop("type")))
    severity, message = (_text(_value(members.pop(member, None))) for member in _TOLD_BY[name])
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


def delivered(event: Event, payload: bytes) -> Event:
    """The event of a message that a broker may deliver again: known by its bytes, if it tells a time of its own."""
    if _value(_members(payload).get("timestamp")) is None:
        return event
    return replace(event, id=_id(event.machine_id, b"", payload))


def _id(machine_id: UUID, moment: bytes, payload: bytes) -> UUID:
    told = b"%s %s %s" % (machine_id.bytes, moment, payload)
    return UUID(bytes=blake2b(told, digest_size=16).digest(), version=4)


def _texts(payload: bytes) -> int:
    """How many texts are in it, at least half of them: a quote within a text has a backslash before it."""
    return (payload.count(b'"') - payload.count(b'\\"')) // 2


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _members(payload: bytes) -> dict[str, msgspec.Raw]:
    for text in filter(is_value, _candidates(storable(payload))):
        with suppress(*SYNTAX_ERRORS):
            members = _OBJECT.decode(text)
            if str(_value(members.get("type"))) in TYPES:
                return members
    raise BadFrame("json", "an event that cannot be read")


def _candidates(text: bytes) -> Iterator[bytes]:
    """As it is; else the whole message behind the half of one; else what can be read of it."""
    yield text
    yield from restarts(text)
    yield readable(text)


def _value(raw: msgspec.Raw | None) -> object:
    """A member, cut to its limits; None for what is too long or no type holds."""
    if raw is None or len(memoryview(raw)) > limits.PART_BYTES:
        return None
    for text in (bytes(raw), readable(bytes(raw))):
        with suppress(*SYNTAX_ERRORS):
            return _bounded(msgspec.json.decode(text), limits.EVENT_DEPTH)
    return None


def _text(value: object) -> str | None:
    """A member as text; of one that is no text its JSON."""
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _detail(members: Mapping[str, msgspec.Raw]) -> str:
    kept = {name[: limits.NAME_CHARS]: _value(raw) for name, raw in list(members.items())[: limits.EVENT_MEMBERS]}
    encoded = msgspec.json.encode(kept)
    if len(encoded) <= limits.EVENT_BYTES:
        return encoded.decode()
    return msgspec.json.encode({"too_long_bytes": len(encoded)}).decode()


def _bounded(value: object, depth: int) -> object:
    """A JSON value with its texts, lists and objects cut, and what lies too deep left out."""
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


class Allowance:
    """How many events each machine may still report in the current minute."""

    def __init__(self, events_a_minute: int = EVENTS_A_MINUTE) -> None:
        self._events_a_minute = events_a_minute
        self._minute = 0
        self._told: dict[UUID, int] = {}

    def take(self, machine_id: UUID, now_ms: int) -> bool:
        """Count one event; False when it is one too many."""
        minute = now_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self._told = minute, {}
        self._told[machine_id] = told = self._told.get(machine_id, 0) + 1
        return told <= self._events_a_minute
