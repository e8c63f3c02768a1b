"""The trust boundary of a running guestd: what machines are set to, and guests that mean harm."""

import json
import re
from typing import Any

from tools.harness.waiting import eventually

from support.daemon import Daemon, Guest, execute, metrics_line, rows

HOSTILE = '\x1b[2J\x1b]0;owned\x07\r\n{"event": "forged"}\x9b31m\u2028\u202e </script> "\'`$(id) '


def secret_line() -> bytes:
    return metrics_line(
        processes=[{"id": 1, "name": "a", "memory_usage_kb": 1, "command_line": "a --password=hunter2 -v"}]
    )


def command_lines(daemon: Daemon) -> list[str | None]:
    return [line for (line,) in rows(daemon.dsn, 'SELECT "commandLine" FROM "ProcessSnapshot" ORDER BY "timestamp"')]


def set_machine(daemon: Daemon, guest: Guest, setting: str) -> None:
    execute(daemon.dsn, f'UPDATE "Machine" SET {setting} WHERE "id" = \'{guest.path.stem}\'')


def test_command_lines_are_kept_as_the_machine_says_and_a_change_takes_effect_while_running(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(secret_line())
    eventually(lambda: command_lines(daemon) == ["a --password=*** -v"], "redacted by default")

    def kept_as(setting: str, wanted: str | None) -> None:
        set_machine(daemon, guest, setting)

        def is_so() -> bool:
            guest.write(secret_line())
            return command_lines(daemon)[-1] == wanted

        eventually(is_so, f"{setting}: {wanted}")

    kept_as("\"commandLines\" = 'full'", "a --password=hunter2 -v")
    kept_as("\"commandLines\" = 'off'", None)
    kept_as('"commandLines" = NULL', "a --password=*** -v")
    daemon.stop()


def test_the_host_may_keep_no_command_lines_at_all(daemon: Daemon) -> None:
    daemon.virtio_lines = '[privacy]\ncommand_lines = "off"\n'
    guest, trusted = daemon.guest(), daemon.guest()
    set_machine(daemon, trusted, "\"commandLines\" = 'full'")
    daemon.start()
    guest.write(secret_line())
    trusted.write(secret_line())
    eventually(lambda: len(command_lines(daemon)) == 2, "both stored")
    assert set(command_lines(daemon)) == {None, "a --password=hunter2 -v"}
    daemon.stop()


def test_a_machine_that_is_set_not_to_be_collected_is_not_read_until_it_is_again(daemon: Daemon) -> None:
    guest, other = daemon.guest(), daemon.guest()
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: len(command_lines(daemon)) == 1, "its first sample")
    set_machine(daemon, guest, '"isCollected" = false')
    eventually(lambda: daemon.metric("guestd_channels_not_collected") == 1, "its channel is closed")
    eventually(lambda: daemon.metric("guestd_channels_connected") == 1, "its connection has ended")
    guest.hang_up()
    other.write(metrics_line())
    eventually(lambda: len(command_lines(daemon)) == 2, "the other one goes on")
    set_machine(daemon, guest, '"isCollected" = true')
    guest.write(metrics_line())
    eventually(lambda: len(command_lines(daemon)) == 3, "it is read again")
    daemon.stop()


def hostile_lines() -> bytes:
    """Escapes in every text of a message: one that is stored, and others that end in every kind of refusal."""
    process = {"id": 1, "name": HOSTILE, "memory_usage_kb": 1, "command_line": HOSTILE, "executable_path": HOSTILE}
    good: dict[str, Any] = {
        "processes": [process | {"status": HOSTILE}],
        "ports": [{"port": 1, "protocol": HOSTILE, "state": HOSTILE, "process_name": HOSTILE, "exe_path": HOSTILE}],
        "windows_services": [{"name": HOSTILE, "display_name": HOSTILE, "state": HOSTILE, "start_mode": HOSTILE}],
        "network": {"interfaces": [{"name": HOSTILE, "ip_addresses": [HOSTILE]}]},
        "disk": {"usage_stats": [{"mount_point": HOSTILE, "total_gb": 1, "filesystem": HOSTILE}]},
    }
    stored = metrics_line(**good)
    refused = metrics_line(processes=[{"id": HOSTILE, "name": HOSTILE, HOSTILE: 1}], ports=[HOSTILE])
    text = json.dumps(HOSTILE).encode()
    others = (
        b'{"type":%s}' % text, b'{"type":%s,"data":{}}' % text, b'{"type":"metrics","vm_id":%s,' % text + stored[18:-1],
        b'{"type":"metrics","data":%s}' % text, HOSTILE.replace("\n", "").encode(), b'{%s:%s' % (text, text),
        b'{"type":"error_report","message":%s,"severity":%s}' % (text, text),
    )  # fmt: skip
    return stored + refused + b"".join(line + b"\n" for line in others)


def test_a_guests_words_are_stored_and_reach_neither_log_nor_metrics_nor_health(daemon: Daemon) -> None:
    guest = daemon.guest()
    execute(daemon.dsn, """ALTER TABLE "ProcessSnapshot" ADD CONSTRAINT "t" CHECK ("name" <> 'poison')""")
    daemon.start()
    poison = [{"id": 1, "name": "poison", "memory_usage_kb": 1, "command_line": HOSTILE}]
    guest.write(hostile_lines() + metrics_line(processes=poison) + metrics_line())
    eventually(lambda: daemon.metric("guestd_spool_frames") == 0 and _samples(daemon) >= 2, "all judged")
    eventually(lambda: any("quarantining" in str(line.get("event")) for line in daemon.logged()), "the refusal logged")
    assert rows(daemon.dsn, """SELECT count(*) FROM "ProcessSnapshot" WHERE "name" LIKE '%%owned%%'""") == [(1,)]
    logged, (_, metrics), (_, health) = daemon.log.read_text(), daemon.page("/metrics"), daemon.page("/readyz")
    assert "forged" not in metrics + health
    assert "owned" not in metrics
    for page in (logged, metrics, health):
        assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", page) is None
    assert not any(line.get("event") == "forged" for line in daemon.logged())
    assert all(len(line) < 5000 for line in logged.splitlines())
    daemon.stop()


def _samples(daemon: Daemon) -> int:
    ((count,),) = rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"')
    return int(count)
