"""The most expensive frames that a guest can make, and what each takes from its bytes to rows.

Each is just below the cap of 4 MiB, or of the size at which it is most expensive.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from tools.bench.flood import FRAME_BYTES, HEAD, hostile_command_lines, large_frames, wrong_values

from guestd.core.errors import BadFrame
from guestd.rows.normalise import GuestHistory, normalise
from guestd.wire import events, limits
from guestd.wire.decode import decode
from guestd.wire.line import is_whole, read_first_line, read_line

ROOM = FRAME_BYTES - 4096
NOW = datetime(2025, 10, 1, 12, tzinfo=UTC)


def measure(tries: int) -> dict[str, dict[str, float]]:
    """Try every frame and print the table. Processor time, the least of several tries."""
    print(f"{'frame':>36} {'bytes':>9} {'to rows ms':>11} {'at the gate ms':>15}  outcome")
    figures = {}
    for name, frame in _frames():
        outcome, rows_ms, gate_ms = _costs(frame, tries)
        figures[name] = {"bytes": len(frame), "to_rows_ms": rows_ms, "gate_ms": gate_ms}
        print(f"{name:>36} {len(frame):9} {rows_ms:11.1f} {gate_ms:15.1f}  {outcome}", flush=True)
    print(f"the most expensive: {max(each['to_rows_ms'] for each in figures.values()):.1f} ms")
    return figures


def _costs(frame: bytes, tries: int) -> tuple[str, float, float]:
    outcome, rows_ms, gate_ms = "", [], []
    for _ in range(tries):
        began = time.process_time()
        outcome = _to_rows(frame)
        rows_ms.append((time.process_time() - began) * 1000)
        began = time.process_time()
        for line in read_first_line(frame):
            is_whole(line.payload or b"")
        gate_ms.append((time.process_time() - began) * 1000)
    return outcome, min(rows_ms), min(gate_ms)


def _to_rows(frame: bytes) -> str:
    try:
        if read_line(frame).kind in events.TYPES:
            events.read_event(frame, machine_id=UUID(int=1), received_at=NOW)
            return "event"
        rows = normalise(
            decode(frame).metrics,
            row_id=UUID(int=2),
            machine_id=UUID(int=1),
            timestamp=NOW,
            received_at=NOW,
            digest=None,
            history=GuestHistory(),
            command_lines="redacted",
        )
    except BadFrame as exc:
        return f"quarantined: {exc.reason}"
    return f"{rows.count} rows"


def _frames() -> Iterator[tuple[str, bytes]]:
    yield "sockets", large_frames().strip()
    yield "sockets that all differ", _list("ports", b'{"port":%d,"protocol":"p%d","state":"s%d"}', 80_000)
    yield "hostile command lines", hostile_command_lines().strip()
    process = b'{"id":%d,"name":"p%d","memory_usage_kb":%d,'
    yield "long harmless lines", _list("processes", process + b'"command_line":"' + b"java a.jar " * 370 + b'"}', 990)
    yield "processes", _list("processes", process + b'"start_time":"2025-10-01T10:30:30.123456+02:00"}', 27_000)
    yield "every value wrong", wrong_values().strip()
    yield "numbers of thousands of digits", HEAD + b'"processes":[' + _many(b'{"id":' + b"9" * 4000 + b"},") + b"1]}}}"
    yield "one number of millions of digits", HEAD + b'"uptime_seconds":' + b"9" * ROOM + b"}}}"
    yield "wrong processor cores", HEAD + b'"cpu":{"cores_usage":[' + b'"",' * 240_000 + b"1]}}}}"
    address = b'{"name":"n","is_up":5,"ip_addresses":[' + b'"1",' * 230 + b'"1"]},'
    yield "wrong interfaces", HEAD + b'"network":{"interfaces":[' + address * 1000 + b"1]}}}}"
    icon = b'{"exe_path":"%d","name":"n","icon_base64":"' + b"QUJD" * 480 + b'"}'
    yield "icons", HEAD + b'"x":1},"applications":[' + b",".join(icon % number for number in range(2000)) + b"]}}"
    yield "escapes", HEAD + b'"x":"' + rb"\ud83d\ude00" * 49_000 + rb"\u0000" + b'"}}}'
    yield "nothing but escapes", HEAD + b'"x":"' + _many(rb"\u0041") + b'"}}}'
    yield "no UTF-8", HEAD + b'"x":"' + b"\xff" * 250_000 + b'"}}}'
    yield "NaN", HEAD + b'"cpu":{"cores_usage":[' + b"NaN," * 60_000 + b"1]}}}}"
    yield "no JSON, full of colons", HEAD + b'"x":"' + b":" * 250_000 + b'",y}}}'
    yield "halves of lines", b'{"type":"ping","x":' * 8 + b"[" + _many(b"{},")
    yield "thousands of beginnings", _many(b'{"type":"ping"},')
    broken = b'{"type":"metrics","data":[' + b"[]," * (ROOM // 30) + b"]}"
    yield "eight messages that are broken at their ends", broken * 8
    yield "one message of thousands that begin", b"[" + _many(b'{"type":1},')
    yield "a half full of NaN", (b'{"type":"ping","x":[' + b"NaN," * 65_536)[: limits.READABLE_BYTES]
    yield "halves with NaN", (b'{"type":"metrics","data":[' + b"NaN," * 7_000 + b"1]") * 9
    yield "brackets", HEAD + b'"x":' + b"[" * ROOM
    yield "commas", HEAD + b'"x":[' + b"1," * (ROOM // 2) + b"1]}}}"
    members = b",".join(b'"%d":"x"' % number for number in range(240_000))
    yield "an event of many members", b'{"type":"error_report",' + members + b"}"


def _many(piece: bytes) -> bytes:
    return piece * (ROOM // len(piece))


def _list(name: str, entry: bytes, entries: int) -> bytes:
    listed = b",".join(entry % (number % 65536, number, number) for number in range(entries))
    return HEAD + b'"%s":[' % name.encode() + listed + b"]}}}"
