"""What is known of a line without decoding it: its kind, and the header of a numbered one. Pure.

A line is read once, where it arrives. What was learned travels with it through the gate and the spool.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from guestd.core.errors import BadFrame
from guestd.wire.framing import Oversize
from guestd.wire.repair import remove_unstorable

# The kind of a line that carries metrics, and of one whose kind is unknown before it is decoded.
METRICS = "metrics"
# The other messages of guests; their names are safe as metric labels.
OTHER_TYPES = frozenset(
    {
        "agent_event", "circuit_breaker_state", "connection_status", "error_report", "firewall_event", "keep_alive",
        "ping", "pong", "request_pending_scripts", "response", "script_completion",
    }
)  # fmt: skip
# The kind of every other message: a guest may write any type, so its own name is not kept.
UNKNOWN = "unknown"
KINDS = OTHER_TYPES | {METRICS, UNKNOWN}


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


def read_line(line: bytes | Oversize) -> Line:
    """Read a line's kind and header; of one over the size limit from its first bytes."""
    head, payload = (line.head, None) if isinstance(line, Oversize) else (line, line)
    kind = _read_kind(head)
    return Line(kind, _read_header(head) if kind == METRICS else None, payload)


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
    if _RESPONSE.match(line):
        return "response"
    match = _TYPE.match(line)
    name = match.group(1).decode(errors="replace") if match else METRICS
    # Such a line may have been cut short, and a metrics line written behind it.
    if name == METRICS or b'{"type":"metrics"' in line:
        return METRICS
    return name if name in OTHER_TYPES else UNKNOWN


# A bound on the search for a whole message in a line, whatever a guest sends.
MAX_RESTARTS = 8


def restarts(line: bytes) -> Iterator[bytes]:
    """Parts that may be the whole message behind the half of one, the last first."""
    end = len(line)
    for _ in range(MAX_RESTARTS):
        # A quote inside a JSON text is escaped, so these bytes can only begin an object.
        end = line.rfind(b'{"type":', 1, end)
        if end <= 0:
            break
        yield line[end:]


# What decoders raise for a text that is not JSON. A ValidationError, for a wrong value, is a DecodeError too.
SYNTAX_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def is_whole(line: bytes) -> bool:
    """Whether a line is one JSON value or ends with one: the first line of a connection may be the rest of one."""
    try:
        text = remove_unstorable(line)
    except BadFrame:
        return False
    return is_value(text) or any(map(is_value, restarts(text)))


def is_json(line: bytes) -> bool:
    """Whether a line is one whole JSON value."""
    try:
        return is_value(remove_unstorable(line))
    except BadFrame:
        return False


def is_value(text: bytes) -> bool:
    """Whether a text without bad escapes is one whole JSON value."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except SYNTAX_ERRORS:
        return False
    return True
