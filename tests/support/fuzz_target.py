"""What must hold for any bytes that a guest writes, from its channel to rows: shared by the fuzzer and a unit test.

Needs no more than guestd's pure core: the fuzzer's environment has little else.
"""

import itertools
from datetime import timedelta

import msgspec

from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.rows.model import Rows
from guestd.rows.normalise import GuestHistory
from guestd.rows.times import guest_time, sample_time
from guestd.wire import decode, events, limits
from guestd.wire.framing import BLANK, Framer, Oversize
from guestd.wire.line import FRAGMENT, is_whole, read_first_line, read_line, read_lines
from support.rows import MACHINE, RECEIVED, misfits, rows_of

# Short, so that the fuzzer finds lines over it.
LIMIT_BYTES = 8 * 1024
MOST_ROWS = 1 + limits.PROCESSES + limits.SOCKETS + limits.SERVICES + 2 * limits.APPLICATIONS
FARTHEST = timedelta(days=8)


def check(stream: bytes) -> None:
    """Raise for whatever no bytes may do."""
    whole = Framer(LIMIT_BYTES).feed(stream)
    assert _in_pieces(stream) == whole, "lines depend on how the stream is cut"
    remembered = GuestHistory()
    for line in whole:
        for message in read_lines(line):
            if message.payload is not None and message.kind != FRAGMENT:
                _check_message(message.payload, remembered)
        if not isinstance(line, Oversize):
            _check_parts(line)


def _in_pieces(stream: bytes) -> list[bytes | Oversize]:
    """The lines when it comes in pieces; their sizes are taken from the stream itself."""
    framer = Framer(LIMIT_BYTES)
    edges = [0, *itertools.accumulate(1 + byte % 61 for byte in stream[:200]), len(stream)]
    pieces = (stream[begin:end] for begin, end in itertools.pairwise(sorted(min(each, len(stream)) for each in edges)))
    return [line for piece in pieces for line in framer.feed(piece)]


def _check_parts(line: bytes) -> None:
    """The messages of a line are its parts in order, and little stands between them; the first line is read alike."""
    place = 0
    for message in read_lines(line):
        assert message.payload is not None
        begin = line.index(message.payload, place)
        assert not line[place:begin].strip(BLANK)
        place = begin + len(message.payload)
    assert not line[place:].strip(BLANK)
    first, *others = read_first_line(line)
    assert [first, *others] == read_lines(line) or (first.kind == FRAGMENT and others == read_lines(line)[1:])


def _check_message(line: bytes, remembered: GuestHistory) -> None:
    is_whole(line)
    if read_line(line).kind in events.TYPES:
        _check_event(line)
    try:
        decoded = decode.decode(line)
        rows = rows_of(line, remembered)
    except BadFrame as exc:
        if exc.reason not in ("json", "shape", "type"):
            raise
        return
    assert misfits(rows) == []
    assert len(decoded.refusals) <= limits.REFUSALS
    assert rows.count <= MOST_ROWS
    _check_bounds(rows)
    claimed = guest_time(decoded.metrics.timestamp)
    for channel in Transport:
        assert abs(sample_time(claimed, RECEIVED, channel) - RECEIVED) < FARTHEST


def _check_event(line: bytes) -> None:
    try:
        event = events.read_event(line, machine_id=MACHINE, received_at=RECEIVED)
    except BadFrame as exc:
        if exc.reason != "json":
            raise
        return
    assert event.type in events.TYPES
    assert len(event.detail) <= limits.EVENT_BYTES
    assert isinstance(msgspec.json.decode(event.detail), dict)
    for text in (event.severity or "", event.message or "", event.detail):
        text.encode()
        assert "\0" not in text
        assert r"\u0000" not in text.replace(r"\\", "")
    assert len(event.severity or "") <= limits.STATE_CHARS
    assert len(event.message or "") <= limits.EVENT_CHARS


def _check_bounds(rows: Rows) -> None:
    columns = [value for row in (rows.system_metrics, *rows.services) for value in row if isinstance(value, bytes)]
    for column in columns:
        assert len(column) <= limits.JSON_BYTES + limits.PATH_CHARS
        msgspec.json.decode(column)
    every = (*rows.processes, *rows.ports, *rows.application_history, *rows.applications, *rows.services)
    assert all(len(value) <= limits.PATH_CHARS for row in every for value in row if isinstance(value, str))
    assert all(len(row.executablePath.encode()) <= 2_600 for row in rows.application_history)
