"""What is known of a line without decoding it: its kind, and the header of a numbered one. Pure.

A line is read once, where it arrives. What was learned travels with it through the gate and the spool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from guestd.core.errors import BadFrame
from guestd.wire import limits
from guestd.wire.framing import BLANK, Oversize
from guestd.wire.repair import make_readable, remove_unstorable, replace_repairable

# The kind of a line that carries metrics, and of one whose kind is unknown before it is decoded.
METRICS = "metrics"
# The messages that report an event, which is stored.
EVENTS = frozenset(
    {"agent_event", "circuit_breaker_state", "connection_status", "error_report", "firewall_event", "script_completion"}
)
# All other messages of guests; their names are safe as metric labels.
OTHER_TYPES = EVENTS | {"keep_alive", "ping", "pong", "request_pending_scripts", "response"}
# The kind of every other message: a guest may write any type, so its own name is not kept.
UNKNOWN = "unknown"
KINDS = OTHER_TYPES | {METRICS, UNKNOWN}
# The kind of what is no message and is not accepted: the rest of a line, the half of a message that was sent again.
FRAGMENT = "fragment"


@dataclass(frozen=True, slots=True)
class LineId:
    """What identifies a numbered line: the run of its agent, its number, and its mark where the agent sets one."""

    boot_id: str
    seq: int
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """The position of a line in its sender's sequence (docs/wire.md)."""

    boot_id: str
    seq: int
    oldest: int
    after: str | None = None  # the mark of the line before; agents that set no marks are not checked
    mark: str | None = None

    @property
    def line_id(self) -> LineId:
        """What identifies the line, also when it is sent again."""
        return LineId(self.boot_id, self.seq, self.mark)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a guest. Without a payload: longer than the size limit, so that it was not kept."""

    kind: str
    header: Header | None
    payload: bytes | None

    @property
    def line_id(self) -> LineId | None:
        """What identifies it, if it is numbered."""
        return None if self.header is None else self.header.line_id


def is_stored(line: Line) -> bool:
    """Whether a line of this kind becomes rows; the others are answered or counted."""
    return line.kind == METRICS or line.kind in EVENTS


def read_lines(line: bytes | Oversize) -> list[Line]:
    """The messages of a line, in order: none in a blank one, and several if their sender left out line ends.

    Each is judged as if it had a line to itself; the half of one that stands complete behind it is a `FRAGMENT`.
    """
    if isinstance(line, Oversize):
        return [read_line(line)]
    text = line.strip(BLANK)
    if is_whole(text):
        return [read_line(text)]
    if len(parts := _separate(text)) <= 1:
        return [_read_broken(part) for part in parts]
    return [_read_part(part, parts[place:]) for place, part in enumerate(parts, 1)]


def read_first_line(line: bytes | Oversize) -> list[Line]:
    """The messages of the first line of a connection, which may begin with the rest of one: that is a `FRAGMENT`."""
    lines = read_lines(line)
    if lines and (text := lines[0].payload) is not None and _is_rest(text):
        lines[0] = Line(FRAGMENT, None, text)
    return lines


def read_line(line: bytes | Oversize) -> Line:
    """Read the kind and header of a line with one message; of one over the size limit from its first bytes."""
    head, payload = (line.head.lstrip(BLANK), None) if isinstance(line, Oversize) else (line, line)
    kind = _read_kind(head)
    return Line(kind, _read_header(head) if kind == METRICS else None, payload)


# How a message begins behind a broken one. A quote inside a JSON text is escaped: these bytes can only begin an object.
_START = b'{"type":'
_BLANKS = re.compile(rb"[\0-\x20\xef\xbb\xbf]*+")
# To look for an end takes as long as to scan this many bytes, at the least.
_SEARCH_BYTES = 2048


def _separate(text: bytes) -> list[bytes]:
    """The first messages that follow each other in a text, and what else stands in it, in order; no part is blank."""
    scanned = replace_repairable(text)
    parts: list[bytes] = []
    begin = place = messages = searched = 0
    most_bytes = min(limits.SEARCHED_BYTES, limits.SEARCHED_LEAST_BYTES + limits.SEARCHED_PER_BYTE * len(text))
    while 0 <= place < len(text) and messages < limits.MESSAGES and searched < most_bytes:
        searched += _SEARCH_BYTES
        end = None
        # An object inside a broken message seldom has the type of a message.
        if place == begin or _read_kind(text[place : place + 2 * len(_START) + 100]) != UNKNOWN:
            end, read_bytes = _find_end(scanned, place)
            searched += read_bytes
        if end is None:
            place = text.find(_START, place + 1)
            continue
        parts += _cut_halves(text[begin:place], text[place:end])
        parts.append(text[place:end])
        begin = place = end
        messages += 1
    parts.append(text[begin:])
    return [part for each in parts if (part := each.strip(BLANK))]


# A half that is shorter is not looked for: many messages begin alike.
_OPENING_BYTES = len(b'{"type":"metrics"')


def _cut_halves(broken: bytes, message: bytes) -> list[bytes]:
    """The text before a message, divided: what is no half of that message, then each half of it at the text's end."""
    opening, halves, end = message[:_OPENING_BYTES], list[bytes](), len(broken)
    while len(halves) < limits.MESSAGES and (start := broken.rfind(opening, 0, end)) >= 0:
        half = broken[start:end].strip(BLANK)
        if not message.startswith(half):
            break
        halves.insert(0, half)
        end = start
    return [broken[:end], *halves]


# The error of a text behind a value says where it begins, and so where the value ends; a test would see a change.
_BYTE = re.compile(r"\(byte (\d+)\)$")


def _find_end(text: bytes, place: int) -> tuple[int | None, int]:
    """Where the message ends that begins at a place, the blanks behind it included, and how many bytes were read.

    None when no whole message stands there, or something else than a message behind it.
    """
    rest = memoryview(text)[place:]
    try:
        msgspec.json.decode(rest, type=msgspec.Raw)
    except SYNTAX_ERRORS as exc:
        found = _BYTE.search(str(exc))
        if found is None:  # cut, or nested too deep
            return None, len(rest)
        read_bytes = int(found[1])
        if "trailing characters" not in str(exc):
            return None, read_bytes
        end = _BLANKS.match(text, place + read_bytes - 1).end()  # type: ignore[union-attr] # it matches everywhere
        is_message = text.startswith(b"{", place) and (end == len(text) or text.startswith(b"{", end))
        return end if is_message else None, read_bytes
    return len(text), len(rest)


def _read_part(part: bytes, later: Sequence[bytes]) -> Line:
    if is_whole(part):
        return read_line(part)
    # A sender whose write came to a halt in the middle sends the whole line again, and nothing is lost.
    if any(each.startswith(part) and is_whole(each) for each in later):
        return Line(FRAGMENT, None, part)
    return _read_broken(part)


def _read_broken(text: bytes) -> Line:
    """Read what is no whole message. It may contain metrics: all but an event is kept and quarantined as these are."""
    line = read_line(text)
    return line if is_stored(line) else Line(METRICS, None, text)


_HEADER = re.compile(
    rb'\{"type":"metrics","boot_id":"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})","seq":([1-9][0-9]{0,17}),"oldest":([1-9][0-9]{0,17})(?:,"after":"([0-9a-f]{16})","mark":"([0-9a-f]{16})")?[,}]'
)
_TYPE = re.compile(rb'\s*\{\s*"type"\s*:\s*"([^"\\]{1,100})"')
# The answer to a command has no type.
_RESPONSE = re.compile(rb'\s*\{\s*"id"\s*:\s*"[^"\\]{0,100}"\s*,\s*"success"\s*:')


def _read_header(line: bytes) -> Header | None:
    """The sequence header that our own agent starts a line with; None for every other sender."""
    match = _HEADER.match(line)
    if match is None:
        return None
    boot_id, seq, oldest, after, mark = match.groups()
    marks = (after.decode(), mark.decode()) if mark else (None, None)
    header = Header(boot_id.decode(), int(seq), int(oldest), *marks)
    return header if header.oldest <= header.seq else None


def _read_kind(line: bytes) -> str:
    if line.startswith(b'{"type":"metrics"'):
        return METRICS
    if _RESPONSE.match(line):
        return "response"
    match = _TYPE.match(line)
    name = match.group(1).decode(errors="replace") if match else METRICS
    return name if name == METRICS or name in OTHER_TYPES else UNKNOWN


# What decoders raise for a text that is not JSON. A ValidationError, for a wrong value, is a DecodeError too.
SYNTAX_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def _is_rest(text: bytes) -> bool:
    """Whether a text neither begins as a message does nor is whole.

    The rest of a line that was cut just before an inner object is taken for a broken message.
    """
    return not text.startswith((b"{", *UTF16_MARKS)) and not is_whole(text)


def is_whole(text: bytes) -> bool:
    """Whether a text is one whole JSON value as decoding reads it: with its repairs."""
    if _is_value(text):
        return True
    try:
        repaired = make_readable(remove_unstorable(text))
    except BadFrame:
        return False
    return repaired != text and _is_value(repaired)


def _is_value(text: bytes) -> bool:
    """Whether a text is one whole JSON value as it stands."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except SYNTAX_ERRORS:
        return False
    return True
