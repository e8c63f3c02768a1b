"""What guests report besides metrics of the current format: events, legacy dialects, unknown types."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

from tools.harness.waiting import eventually

from guestd.wire.events import EVENTS_A_MINUTE
from support.daemon import Daemon, add_machine, metrics_line, rows

ERROR = b'{"type":"error_report","timestamp":"t","error_type":"DeviceLost","severity":"Fatal"}\n'
STATUS = b'{"type":"connection_status","timestamp":"t","state":"connected","details":"","vm_id":"b0"}\n'
SCRIPT = b'{"type":"script_completion","execution_id":"x","exit_code":0,"stdout":"secret","log_file":"/l"}\n'


def _events(daemon: Daemon) -> list[tuple[UUID, str, str, str]]:
    statement = 'SELECT "machineId", "type", "severity", "message" FROM "GuestEvent" ORDER BY "receivedAt"'
    return [
        (machine_id, name, severity, message) for machine_id, name, severity, message in rows(daemon.dsn, statement)
    ]


def _count(daemon: Daemon, table: str) -> int:
    return int(rows(daemon.dsn, f'SELECT count(*) FROM "{table}"')[0][0])


def test_events_are_stored_in_their_order_between_the_metrics(daemon: Daemon) -> None:
    machine_id = add_machine(daemon.dsn)
    guest = daemon.guest(machine_id)
    daemon.start()
    guest.write(ERROR + metrics_line() + STATUS + SCRIPT)
    eventually(lambda: len(_events(daemon)) == 3, "three events")
    assert _events(daemon) == [
        (machine_id, "error_report", "Fatal", "DeviceLost"),
        (machine_id, "connection_status", None, "connected"),
        (machine_id, "script_completion", None, "0"),
    ]
    ((detail, received_at),) = rows(
        daemon.dsn, """SELECT "detail", "receivedAt" FROM "GuestEvent" WHERE "type" = 'connection_status'"""
    )
    assert detail == {"timestamp": "t", "details": "", "vm_id": "b0"}
    assert abs(datetime.now(UTC) - received_at) < timedelta(minutes=5)
    assert _count(daemon, "SystemMetrics") == 1
    assert _count(daemon, "QuarantinedFrame") == 0
    assert daemon.metric("guestd_frames_done_total", outcome="stored") == 4
    assert daemon.metric("guestd_rows_written_total", table="GuestEvent") == 3
    assert daemon.metric("guestd_other_messages_total", type="error_report") == 1
    assert daemon.stop() == 0


def test_events_survive_kill_9_and_are_stored_once(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(ERROR)
    eventually(lambda: len(_events(daemon)) == 1, "the first event")
    dsn, daemon.dsn = daemon.dsn, "host=127.0.0.1 port=1 dbname=none connect_timeout=1"
    assert daemon.stop() == 0
    guest.hang_up()
    # Without a store: what it takes waits in the spool.
    daemon.start()
    guest.write(metrics_line() + STATUS + SCRIPT)
    eventually(lambda: daemon.metric("guestd_frames_accepted_total") == 3, "three frames in the spool")
    daemon.kill()
    guest.hang_up()
    daemon.dsn = dsn
    daemon.start()
    eventually(lambda: len(_events(daemon)) == 3, "all events")
    assert [name for _, name, _, _ in _events(daemon)] == ["error_report", "connection_status", "script_completion"]
    assert daemon.stop() == 0
    assert len(_events(daemon)) == 3


def test_an_event_that_cannot_be_read_is_set_aside(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(metrics_line() + b'{"type":"error_report","severity":\n' + ERROR)
    eventually(lambda: len(_events(daemon)) == 1, "the next one")
    assert rows(daemon.dsn, 'SELECT "reason" FROM "QuarantinedFrame"') == [("json",)]
    assert daemon.stop() == 0


def test_a_flood_of_events_is_cut_off_and_the_metrics_go_on(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    flood = 5 * EVENTS_A_MINUTE
    guest.write(metrics_line() + ERROR * flood + metrics_line())
    eventually(lambda: _count(daemon, "SystemMetrics") == 2, "both samples")
    taken = EVENTS_A_MINUTE
    refused = daemon.metric("guestd_frames_refused_total", reason="event_flood")
    # The minute may have changed under it.
    assert flood - 2 * taken <= refused <= flood - taken
    eventually(lambda: _count(daemon, "GuestEvent") == flood - refused, "what was taken")
    assert daemon.metric("guestd_other_messages_total", type="error_report") == flood
    assert daemon.stop() == 0


def test_types_that_nobody_knows_are_counted_under_one_name_and_not_kept(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(b"".join(b'{"type":"new_%d","x":1}\n' % number for number in range(20)) + metrics_line())
    eventually(lambda: _count(daemon, "SystemMetrics") == 1, "the sample behind them")
    assert daemon.metric("guestd_other_messages_total", type="unknown") == 20
    assert "new_" not in daemon.page("/metrics")[1]
    assert _count(daemon, "QuarantinedFrame") == 0
    assert daemon.stop() == 0


def test_the_oldest_dialect_is_stored_as_todays_is(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    metrics = json.loads(metrics_line())["data"]["system"]
    guest.write(json.dumps({"timestamp": 1759320030, "metrics": metrics}).encode() + b"\n")
    guest.write(b'{"type":"ping","timestamp":"1759320030","vmId":"b0","sequenceNumber":1}\n')
    assert json.loads(guest.read_line())["type"] == "pong"
    guest.write(b'{"timestamp":1759320031,"metrics":{"cpu":{}}}\n')
    eventually(lambda: _count(daemon, "QuarantinedFrame") == 1, "what cannot be mapped")
    assert rows(daemon.dsn, 'SELECT "uptime", "usedMemoryKB" FROM "SystemMetrics"') == [(3600, 1048576)]
    assert _count(daemon, "ProcessSnapshot") == 1
    assert rows(daemon.dsn, 'SELECT "reason" FROM "QuarantinedFrame"') == [("shape",)]
    assert daemon.metric("guestd_values_adjusted_total", reason="older_dialect") == 1
    assert daemon.stop() == 0
