"""A sample that guestd can certainly write, if it can write anything: it tells a frame's fault from guestd's. Pure."""

from __future__ import annotations

from guestd.core.transport import Transport
from guestd.rows.batch import Prepared, place_digest
from guestd.rows.normalise import GuestHistory, normalise
from guestd.rows.times import uuid7
from guestd.wire.decode import decode
from guestd.wire.events import read_event

# A row for every table.
_METRICS = b"""{"type": "metrics", "timestamp": "2025-10-01T12:00:30Z", "data": {
"system": {"cpu": {"usage_percent": 1.5, "cores_usage": [1.5]},
"memory": {"total_kb": 2048, "used_kb": 1024, "available_kb": 1024}, "uptime_seconds": 60,
"disk": {"usage_stats": [], "io_stats": {"read_bytes_per_sec": 0}}, "network": {"interfaces": []}},
"processes": [{"pid": 1, "name": "init", "cpu_percent": 0.5, "memory_kb": 1, "status": "sleeping"}],
"applications": [{"exe_path": "/usr/bin/plain", "name": "plain", "is_active": true}],
"ports": [{"port": 22, "protocol": "tcp", "state": "LISTEN", "pid": 1, "is_listening": true}],
"windows_services": [{"name": "plain", "state": "running", "start_type": "auto"}]}}"""
_EVENT = b'{"type": "error_report", "error_type": "plain", "severity": "info"}'


def make_plain_sample(frame: Prepared) -> list[Prepared]:
    """A sample and an event in the place of a frame: of its machine, at its time, under its number."""
    rows = normalise(
        decode(_METRICS).metrics,
        row_id=uuid7(frame.received_at, bytes(10)),
        machine_id=frame.machine_id,
        timestamp=frame.received_at,
        received_at=frame.received_at,
        digest=place_digest(_METRICS, frame.seq, frame.received_at),
        history=GuestHistory(),
        command_lines=frame.command_lines,
    )
    event = read_event(_EVENT, machine_id=frame.machine_id, received_at=frame.received_at)
    return [
        Prepared(frame.seq, frame.machine_id, frame.received_at, _METRICS, rows, rows.shared.digest),
        Prepared(frame.seq, frame.machine_id, frame.received_at, _EVENT, event, None, transport=Transport.MQTT),
    ]
