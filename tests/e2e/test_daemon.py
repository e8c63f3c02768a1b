"""The daemon as a process: what an operator sees of starting, working, failing and stopping."""

import contextlib
import functools
import json
import os
import resource
import socket
import subprocess
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from psycopg.conninfo import make_conninfo
from tools.harness.waiting import eventually

from support.daemon import Daemon, Guest, add_machine, command, environment, execute, metrics_line, metrics_lines, rows


def _samples(daemon: Daemon) -> int:
    return int(rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"')[0][0])


def _quarantined(daemon: Daemon) -> list[str]:
    return [reason for (reason,) in rows(daemon.dsn, 'SELECT "reason" FROM "QuarantinedFrame" ORDER BY "seq"')]


def _accepted(daemon: Daemon) -> float:
    return daemon.metric("guestd_frames_accepted_total")


def _has_accepted(daemon: Daemon, frames: float) -> bool:
    return _accepted(daemon) == frames


def test_a_line_on_a_channel_becomes_rows(daemon: Daemon) -> None:
    machine_id = add_machine(daemon.dsn)
    guest = daemon.guest(machine_id)
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: _samples(daemon) == 1, "one sample")
    assert rows(daemon.dsn, 'SELECT "machineId", "name" FROM "ProcessSnapshot"') == [(machine_id, "sshd")]
    assert rows(daemon.dsn, 'SELECT "port", "state", "connectionCount" FROM "PortUsage"') == [(22, "LISTEN", 1)]
    assert daemon.metric("guestd_frames_done_total", outcome="stored") == 1
    assert daemon.metric("guestd_rows_written_total", table="ProcessSnapshot") == 1
    assert daemon.page("/healthz") == (200, "alive\n")
    assert daemon.page("/readyz") == (200, "ready\n")
    assert daemon.stop() == 0


def test_only_a_bad_line_is_left_out_and_the_next_good_line_is_stored(daemon: Daemon) -> None:
    machine_id = add_machine(daemon.dsn)
    guest = daemon.guest(machine_id)
    daemon.start()
    guest.write(metrics_line())
    guest.write(b'{"type":"metrics","data":\n' + metrics_line())
    good = metrics_line()
    guest.write(good[:100] + good)
    guest.write(b"x" * (4 * 1024 * 1024 + 1) + b"\n" + metrics_line())
    guest.write(bytes(range(256)).replace(b"\n", b"") * 20 + b"\n" + metrics_line())
    guest.write(b'{"type":"metrics","data":{"system":{}}}\n' + metrics_line())
    eventually(lambda: _samples(daemon) == 6, "the six good lines")
    assert _quarantined(daemon) == ["json", "json", "shape"]
    assert daemon.metric("guestd_frames_refused_total", reason="oversize") == 1
    assert daemon.metric("guestd_frames_refused_total", reason="fragment") == 1
    assert _accepted(daemon) == 9
    assert daemon.stop() == 0


def test_the_rest_of_a_line_at_the_start_of_a_connection_is_dropped(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(metrics_line()[50:] + metrics_line())
    eventually(lambda: _samples(daemon) == 1, "the whole line")
    assert daemon.metric("guestd_frames_refused_total", reason="fragment") == 1
    assert _quarantined(daemon) == []
    daemon.stop()


def test_an_agent_that_connects_for_each_sample_loses_none_that_can_be_repaired(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    poison = [b"NaN", b'"\x1b[2J"', b'"\xff"', b"{"]
    for value in poison:
        accepted = _accepted(daemon)
        guest.write(metrics_line().replace(b"7.5", value))
        eventually(functools.partial(_has_accepted, daemon, accepted + 1), "the only line of its connection")
        guest.hang_up()
    guest.write(b"\n".join(metrics_line().strip().replace(b"7.5", value) for value in poison) + b"\n")
    eventually(lambda: _samples(daemon) == 6, "all that can be repaired")
    assert _quarantined(daemon) == ["json", "json"]
    assert daemon.metric("guestd_frames_refused_total", reason="fragment") == 0
    daemon.stop()


def test_a_message_without_a_line_end_is_stored_when_its_connection_ends_and_half_of_one_is_counted(
    daemon: Daemon,
) -> None:
    guest = daemon.guest()
    daemon.start()

    def write_and_hang_up(text: bytes) -> None:
        guest.write(text)
        guest.hang_up()

    for number, end in enumerate((b"", b"\r", b"\0"), 1):
        write_and_hang_up(metrics_line().strip() + end)
        eventually(functools.partial(_has_accepted, daemon, number), "the only message of its connection")
    write_and_hang_up(metrics_line().strip() * 2)
    eventually(functools.partial(_has_accepted, daemon, 5), "both messages of a connection")
    write_and_hang_up(metrics_line()[:60])
    eventually(lambda: daemon.metric("guestd_frames_refused_total", reason="cut_off") == 1, "half of a message")
    repeated = metrics_line().strip()
    write_and_hang_up(repeated[:60] + repeated)
    eventually(functools.partial(_has_accepted, daemon, 6), "a message behind its half")
    assert daemon.metric("guestd_frames_refused_total", reason="fragment") == 1
    assert daemon.metric("guestd_frames_refused_total", reason="cut_off") == 1
    guest.write(metrics_line().strip())
    daemon.stop()  # reads what has arrived
    daemon.start()
    eventually(lambda: _samples(daemon) == 6, "the messages of six lines; of two equal ones one is a duplicate")
    assert _quarantined(daemon) == []
    daemon.stop()


def test_all_messages_of_a_line_are_stored_however_they_are_separated(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(b"\xef\xbb\xbf" + b"".join(metrics_line().strip() for _ in range(3)) + b"\n")
    guest.write(b"".join(metrics_line().replace(b"\n", b"\r") for _ in range(3)))
    guest.write(b"".join(b"\x1e" + metrics_line().strip() + b"\0" for _ in range(3)) + b"\n")
    eventually(lambda: _samples(daemon) == 9, "nine samples")
    assert _quarantined(daemon) == []
    assert _accepted(daemon) == daemon.metric("guestd_frames_done_total", outcome="stored") == 9
    # Agents write a message and its line end by two writes, and repeat both when the second fails.
    guest.write(metrics_line().strip() * 2 + b"\n")
    eventually(lambda: daemon.metric("guestd_frames_done_total", outcome="duplicate") == 1, "one duplicate")
    assert _samples(daemon) == 10
    daemon.stop()


def test_one_bad_entry_is_refused_and_the_rest_of_its_frame_is_stored(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    processes = [
        {"id": 1, "name": "init", "memory_usage_kb": 1},
        {"id": 2**40, "name": "far", "memory_usage_kb": 1},
    ]
    guest.write(metrics_line(processes=processes))
    eventually(lambda: _quarantined(daemon) == ["row_refused"], "the frame kept beside its rows")
    assert rows(daemon.dsn, 'SELECT "name" FROM "ProcessSnapshot"') == [("init",)]
    ((refusals, stored),) = rows(daemon.dsn, 'SELECT "refusals", "stored" FROM "QuarantinedFrame"')
    assert stored
    assert [(r["table"], r["key"]) for r in refusals] == [("ProcessSnapshot", str(2**40))]
    assert daemon.metric("guestd_frames_done_total", outcome="stored_in_part") == 1
    daemon.stop()


def test_an_unknown_machine_is_reported_and_read_as_soon_as_its_row_appears(daemon: Daemon) -> None:
    known = daemon.guest()
    machine_id = add_machine(daemon.dsn)
    execute(daemon.dsn, f'DELETE FROM "Machine" WHERE "id" = \'{machine_id}\'')
    guest = daemon.guest(machine_id)
    daemon.start()
    # The machine registry is known once the other channel's line is stored.
    known.write(metrics_line())
    eventually(lambda: _samples(daemon) == 1, "the known machine's sample")
    eventually(lambda: daemon.metric("guestd_channels_unknown_machine") == 1, "the unknown machine counted")
    assert any(line.get("machine") == str(machine_id) for line in daemon.logged())
    add_machine(daemon.dsn, machine_id)
    guest.write(metrics_line())
    eventually(lambda: _samples(daemon) == 2, "the new machine's sample", seconds=5)
    assert daemon.metric("guestd_channels_unknown_machine") == 0
    daemon.stop()


def test_machines_that_cannot_be_read_are_named_although_the_store_answers(daemon: Daemon) -> None:
    execute(daemon.dsn, 'ALTER TABLE "Machine" RENAME COLUMN "isCollected" TO "renamed"')
    daemon.start()
    eventually(lambda: "store: machines cannot be read: 42703" in daemon.page("/readyz")[1], "the cause")
    execute(daemon.dsn, 'ALTER TABLE "Machine" RENAME COLUMN "renamed" TO "isCollected"')
    eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
    assert sum("machine registry not updated" in str(line.get("event")) for line in daemon.logged()) == 1
    daemon.stop()


def test_a_new_socket_is_noticed_and_a_gone_one_dropped(daemon: Daemon) -> None:
    machine_id = add_machine(daemon.dsn)
    daemon.start()
    eventually(lambda: daemon.page("/readyz")[0] == 200, "ready")
    guest = daemon.guest(machine_id)
    guest.write(metrics_line())
    eventually(lambda: _samples(daemon) == 1, "a sample from the new socket", seconds=4)
    guest.leave()
    eventually(lambda: daemon.metric("guestd_channels") == 0, "the gone socket dropped", seconds=4)
    again = daemon.guest(machine_id)
    again.write(metrics_line())
    eventually(lambda: _samples(daemon) == 2, "a sample after the guest came back", seconds=4)
    daemon.stop()


def test_a_store_that_cannot_be_reached_is_named_and_the_spool_keeps_filling(daemon: Daemon) -> None:
    guest = daemon.guest()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    store_dsn = daemon.dsn
    daemon.dsn = f"host=127.0.0.1 port={port} dbname=guestd"
    daemon.start()
    guest.write(metrics_lines(3))
    eventually(lambda: daemon.metric("guestd_spool_frames") == 3, "three frames in the spool")
    status, text = daemon.page("/readyz")
    assert status == 503
    assert "host=127.0.0.1" in text
    assert str(port) in text
    assert daemon.page("/healthz")[0] == 200
    assert daemon.stop() == 0
    daemon.dsn = store_dsn
    daemon.start()
    eventually(lambda: _samples(daemon) == 3, "the spooled frames stored after a restart")
    daemon.stop()


def test_a_full_spool_stops_reading_says_so_and_does_not_hold_up_the_stop(daemon: Daemon) -> None:
    guest = daemon.guest()
    store_dsn = daemon.dsn
    daemon.dsn, daemon.spool_max_bytes = "host=127.0.0.1 port=1 dbname=guestd", 100_000
    daemon.start()
    guest.connection().settimeout(1)
    with pytest.raises(TimeoutError):
        guest.write(metrics_lines(10_000))
    assert daemon.metric("guestd_spool_bytes") <= 100_000
    spooled = daemon.metric("guestd_frames_accepted_total")
    assert spooled > 0
    assert daemon.page("/healthz")[0] == 200
    assert daemon.stop() == 0
    daemon.dsn = store_dsn
    daemon.start()
    guest.hang_up()
    eventually(lambda: _samples(daemon) == spooled, "what was spooled, all of it, once")
    assert _quarantined(daemon) == []
    daemon.stop()


def test_sigterm_stores_what_has_arrived(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: _samples(daemon) == 1, "the channel is being read")
    guest.write(metrics_lines(500))
    assert daemon.stop() == 0
    assert _samples(daemon) == 501


def test_a_database_that_was_never_migrated_ends_it_with_the_command_to_run(directory: Path, empty_dsn: str) -> None:
    daemon = Daemon(directory, empty_dsn)
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 78
    assert "gueststore migrate" in daemon.log.read_text()


def test_a_newer_database_ends_it_with_what_to_install(daemon: Daemon) -> None:
    execute(daemon.dsn, 'UPDATE "SchemaMigration" SET "compat" = 9999')
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 78
    assert "install a newer guestd" in daemon.log.read_text()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[spool]\nmax_byte = 1", "unknown field `max_byte` - at `$.spool`"),
        ("[spool]\nmax_bytes = 'much'", "Expected `int`, got `str` - at `$.spool.max_bytes`"),
        ("[store", "guestd.toml"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_path(directory: Path, line: str, complaint: str) -> None:
    file = directory / "guestd.toml"
    file.write_text(line)
    run = command("guestd", "run", "--config", str(file))
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 78
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_channels_that_are_sought_in_no_libvirt_are_refused_at_start(directory: Path, dsn: str) -> None:
    daemon = Daemon(directory, dsn)
    daemon.virtio_lines = 'discovery = "libvirt"\n'
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 78
    assert "libvirt.uri is empty" in daemon.log.read_text()


def test_a_second_guestd_on_the_same_spool_refuses(daemon: Daemon) -> None:
    daemon.start()
    daemon.url()
    second = Daemon(daemon.directory, daemon.dsn, log_name="second.log")
    second.start()
    assert second.process is not None
    assert second.process.wait(30) == 78
    assert "another guestd" in second.log.read_text()
    daemon.stop()


def test_a_port_that_is_taken_is_named(daemon: Daemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon.port = port
        daemon.start()
        assert daemon.process is not None
        assert daemon.process.wait(30) == 78
        assert str(port) in daemon.log.read_text()


def test_the_daemon_needs_no_more_than_the_writer_role(daemon: Daemon) -> None:
    user = f"guestd_test_{uuid4().hex}"
    guest = daemon.guest()
    owner_dsn = daemon.dsn
    execute(owner_dsn, f"CREATE ROLE {user} LOGIN IN ROLE guestd_writer")
    try:
        daemon.dsn = make_conninfo(owner_dsn, user=user)
        daemon.start()
        application = {"exe_path": "/usr/bin/vi", "name": "vi"}
        service = {"name": "cron", "state": "Running", "start_mode": "Auto"}
        content = json.loads(metrics_line(windows_services=[service]))
        content["data"]["applications"] = [application]
        guest.write(json.dumps(content).encode() + b"\n" + b"rubbish\n")
        eventually(lambda: rows(owner_dsn, 'SELECT "applicationName" FROM "ApplicationUsage"') == [("vi",)], "the row")
        eventually(lambda: rows(owner_dsn, 'SELECT "reason" FROM "QuarantinedFrame"') == [("json",)], "the rubbish")
        assert daemon.stop() == 0
    finally:
        execute(owner_dsn, f"DROP OWNED BY {user}", f"DROP ROLE {user}")


def test_chunks_are_made_ahead_and_orphans_swept(daemon: Daemon) -> None:
    execute(daemon.dsn, 'INSERT INTO "DeletedMachine" ("id") VALUES (gen_random_uuid())')
    daemon.start()
    ahead = """SELECT hypertable_name::text, count(*) FROM timescaledb_information.chunks
        WHERE range_end > now() GROUP BY 1"""
    wanted = dict.fromkeys(["SystemMetrics", "ProcessSnapshot", "PortUsage", "ApplicationUsageHistory"], 2)
    eventually(lambda: dict(rows(daemon.dsn, ahead)) == wanted, "the current and the next chunk of every series")
    eventually(lambda: rows(daemon.dsn, 'SELECT count(*) FROM "DeletedMachine"') == [(0,)], "the tombstone swept")
    assert rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"') == [(0,)]
    daemon.stop()


def test_a_socket_that_may_not_be_opened_is_named_with_the_remedy(daemon: Daemon) -> None:
    guest = daemon.guest()
    guest.path.chmod(0)
    if os.geteuid() == 0:
        # Root without the capability that opens everything.
        daemon.wrapper = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    daemon.start()
    complaint = "guestd's user must be in the group that owns the socket"
    eventually(lambda: any(complaint in str(line.get("error")) for line in daemon.logged()), "the complaint")
    guest.path.chmod(0o777)
    guest.write(metrics_line())
    eventually(lambda: _samples(daemon) == 1, "a sample once the socket may be opened")
    daemon.stop()


def test_a_disk_that_takes_no_more_stops_acknowledging_and_it_goes_on_by_itself(daemon: Daemon) -> None:
    guest = daemon.guest()
    daemon.start()
    boot_id = uuid4()

    def numbered(seq: int) -> bytes:
        header = b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":1,' % (str(boot_id).encode(), seq)
        return header + metrics_line().removeprefix(b'{"type": "metrics", ')

    guest.write(numbered(1))
    assert json.loads(guest.read_line())["seq"] == 1
    eventually(lambda: _samples(daemon) == 1, "the first sample")
    assert daemon.process is not None
    _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
    # Every write past the first bytes of a file fails, as on a disk that is full.
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
    guest.write(numbered(2))
    eventually(lambda: daemon.page("/readyz") == (503, "spool: it cannot be written: disk I/O error\n"), "not ready")
    assert daemon.metric("guestd_frames_accepted_total") == 1
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert json.loads(guest.read_line())["seq"] == 2
    eventually(lambda: _samples(daemon) == 2, "the second sample")
    assert daemon.page("/readyz")[0] == 200
    daemon.stop()


def _flood(guest: Guest, line: bytes) -> threading.Thread:
    """Write a line over and over until guestd closes the channel."""

    def write() -> None:
        connection = guest.connection()
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(line * 1000)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_a_guest_that_writes_nothing_but_newlines_holds_nobody_up(daemon: Daemon) -> None:
    flooding, other = daemon.guest(), daemon.guest()
    daemon.start()
    flood = _flood(flooding, b"\n" * 64)
    eventually(lambda: daemon.metric("guestd_channels_connected") == 2, "both channels")
    other.write(metrics_lines(5))
    eventually(lambda: _samples(daemon) == 5, "the other machine's samples")
    assert daemon.stop() == 0
    flood.join(30)
    assert not flood.is_alive()


@pytest.mark.parametrize("line", [b'{"type":"ping"}\n', metrics_line()])
def test_a_guest_that_floods_does_not_hold_up_the_stop(daemon: Daemon, line: bytes) -> None:
    daemon.start()
    flood = _flood(daemon.guest(), line)
    eventually(lambda: daemon.metric("guestd_channels_connected") == 1, "the channel")
    assert daemon.stop() == 0
    flood.join(30)
    assert not flood.is_alive()


def test_a_flooding_machine_that_is_deleted_does_not_hold_up_the_others(daemon: Daemon) -> None:
    flooding, other = daemon.guest(), daemon.guest()
    daemon.start()
    flood = _flood(flooding, b'{"type":"ping"}\n')
    eventually(lambda: daemon.metric("guestd_channels_connected") == 2, "both channels")
    execute(daemon.dsn, f'DELETE FROM "Machine" WHERE "id" = \'{flooding.path.stem}\'')
    other.write(metrics_line())
    eventually(lambda: _samples(daemon) == 1, "the other machine's sample")
    flood.join(30)
    assert not flood.is_alive()
    daemon.stop()


def test_more_channels_than_descriptors_are_waited_for_and_no_reason_to_end(daemon: Daemon) -> None:
    machines = [add_machine(daemon.dsn) for _ in range(60)]
    for machine_id in machines:
        daemon.guest(machine_id)
    daemon.wrapper = ["prlimit", "--nofile=50:50"]
    daemon.start()
    eventually(lambda: any("descriptors are kept" in str(line.get("error")) for line in daemon.logged()), "the reason")
    assert daemon.process is not None
    assert daemon.process.poll() is None
    daemon.stop()


def test_a_disk_that_takes_no_more_while_frames_wait_does_not_end_it(daemon: Daemon) -> None:
    guest = daemon.guest()
    store_dsn = daemon.dsn
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'guestd'"
    daemon.start()
    guest.write(metrics_line())
    eventually(lambda: _samples(daemon) == 1, "the first sample")
    assert daemon.process is not None
    _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
    rows(store_dsn, ending)
    guest.write(metrics_lines(5))
    eventually(lambda: daemon.metric("guestd_frames_accepted_total") == 6, "five more frames in the spool")
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
    eventually(lambda: _samples(daemon) == 6, "the samples, although the spool cannot be trimmed")
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    guest.write(metrics_line())
    eventually(lambda: _samples(daemon) == 7, "the next sample")
    eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool trimmed")
    assert daemon.stop() == 0


@pytest.mark.parametrize("dsn", ["foo bar", "host=localhost port=abc", "host=localhost connect_timeout=soon"])
def test_a_dsn_that_nobody_can_answer_is_refused_at_start(directory: Path, dsn: str) -> None:
    daemon = Daemon(directory, dsn)
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 78
    assert "store.dsn: " in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()
