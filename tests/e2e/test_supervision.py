"""Parts of guestd fail, each by real means, while samples are stored: /readyz names the part, and it recovers."""

import os
import resource
import signal
import socket
from collections import Counter
from pathlib import Path
from uuid import UUID

from tools.harness.waiting import eventually

from support.daemon import Daemon, Guest, execute, metrics_line, rows
from support.libvirt import domain_xml, uri_of


def stored(daemon: Daemon) -> int:
    return int(rows(daemon.dsn, 'SELECT count(*) FROM "SystemMetrics"')[0][0])


def store_one(daemon: Daemon, guest: Guest) -> None:
    """A sample of a guest is stored although something fails."""
    before = stored(daemon)
    guest.write(metrics_line())
    eventually(lambda: stored(daemon) == before + 1, "a sample is stored")


def wait_until_named(daemon: Daemon, *parts: str) -> None:
    def are_named() -> bool:
        status, text = daemon.page("/readyz")
        return status == 503 and all(part in text for part in parts)

    eventually(are_named, f"/readyz names {', '.join(parts)}")


def wait_until_ready(daemon: Daemon) -> None:
    eventually(lambda: daemon.page("/readyz") == (200, "ready\n"), "/readyz is ready again", 180)


def test_maintenance_roll_ups_and_the_registry_fail_while_samples_are_stored(daemon: Daemon) -> None:
    ((definition,),) = rows(
        daemon.dsn, "SELECT pg_get_functiondef('public.guestd_roll_up_minutes(integer)'::regprocedure)"
    )
    execute(
        daemon.dsn,
        # Nothing in guestd expects that it returns nothing: a bug, as far as guestd can see.
        """CREATE OR REPLACE FUNCTION public.guestd_roll_up_minutes(most integer) RETURNS integer LANGUAGE sql
        AS 'SELECT NULL::integer'""",
        "ALTER FUNCTION public.guestd_trim_events(integer, integer) RENAME TO elsewhere",
    )
    guest = daemon.guest()
    daemon.start()
    store_one(daemon, guest)
    wait_until_named(daemon, "rollups failed, retrying: TypeError", "events failed, retrying: 42883")
    execute(daemon.dsn, 'ALTER TABLE "Machine" RENAME COLUMN "commandLines" TO "elsewhere"')
    wait_until_named(daemon, "machines cannot be read: 42703")
    for _ in range(5):
        store_one(daemon, guest)
    assert daemon.metric("guestd_maintenance_failures_total", step="rollups") >= 1
    assert daemon.metric("guestd_maintenance_failures_total", step="events") >= 1
    # The other steps are done.
    assert daemon.metric("guestd_maintenance_failures_total", step="quarantine") == 0
    assert daemon.ended() is None
    execute(
        daemon.dsn,
        definition,
        "ALTER FUNCTION public.elsewhere(integer, integer) RENAME TO guestd_trim_events",
        'ALTER TABLE "Machine" RENAME COLUMN "elsewhere" TO "commandLines"',
    )
    wait_until_ready(daemon)
    traceback = [line for line in daemon.logged() if "report the traceback" in str(line.get("event"))]
    assert [line["step"] for line in traceback] == ["rollups"]
    store_one(daemon, guest)
    assert daemon.stop() == 0


def test_the_vm_reconciler_fails_while_samples_are_stored(daemon: Daemon, tmp_path: Path) -> None:
    guest = daemon.guest()
    machine_id = UUID(guest.path.stem)
    uri = uri_of(tmp_path / "node.xml", [domain_xml(str(machine_id), 1)])
    daemon.more_tables = f'[libvirt]\nuri = "{uri}"\nhost_name = "here"\n'
    execute(
        daemon.dsn,
        # An INSERT that returns no row is what nothing in guestd expects.
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        'CREATE TRIGGER "skip" BEFORE INSERT ON "Host" FOR EACH ROW EXECUTE FUNCTION skip()',
    )
    daemon.start()
    wait_until_named(daemon, "vm-reconciler: failed, retrying: AssertionError")
    store_one(daemon, guest)
    assert daemon.metric("guestd_tasks_failing", task="vm-reconciler") == 1
    execute(daemon.dsn, 'DROP TRIGGER "skip" ON "Host"')
    state = 'SELECT "state", "hostName" FROM "MachineState"'
    eventually(lambda: rows(daemon.dsn, state) == [("running", "here")], "it reconciles")
    eventually(lambda: daemon.metric("guestd_tasks_failing", task="vm-reconciler") == 0, "it is healthy")
    assert "vm-reconciler" not in daemon.page("/readyz")[1]
    store_one(daemon, guest)
    assert daemon.stop() == 0


def test_a_guestd_without_a_free_descriptor_feeds_the_watchdog_and_stores_what_connected_guests_send(
    daemon: Daemon,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(daemon.directory / "notify"))
        notifications.settimeout(90)
        daemon.wrapper = ["env", f"NOTIFY_SOCKET={daemon.directory / 'notify'}", "WATCHDOG_USEC=2000000"]
        guest = daemon.guest()
        daemon.start()
        store_one(daemon, guest)
        assert daemon.process is not None
        limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (1, limits[1]))
        # More than the socket can hold from before.
        received = Counter[str]()
        while received["STATUS"] < 3 or received["WATCHDOG"] < 3:
            received[notifications.recv(65536).decode().partition("=")[0]] += 1
        store_one(daemon, guest)
        # A reload reads a file, which is not possible either.
        os.kill(daemon.process.pid, signal.SIGHUP)
        while not notifications.recv(65536).decode().startswith("READY=1"):
            pass
        store_one(daemon, guest)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
        # From here on nobody reads the notifications, and nothing waits for that.
        wait_until_ready(daemon)
    assert daemon.stop() == 0


def test_a_libvirt_without_network_filters_is_no_problem(daemon: Daemon) -> None:
    daemon.more_tables = '[libvirt]\nuri = "test:///default"\nhost_name = "here"\n[filters]\ninterval_seconds = 1\n'
    guest = daemon.guest()
    daemon.start()
    wait_until_ready(daemon)
    # Its connection to libvirt is up, and it has been asked several times.
    eventually(lambda: daemon.metric("guestd_libvirt_call_seconds_count") >= 20, "libvirt is asked again")
    assert daemon.page("/readyz") == (200, "ready\n")
    store_one(daemon, guest)
    assert daemon.stop() == 0
    assert sum("no network filters" in str(line.get("event")) for line in daemon.logged()) == 1


def test_a_spool_that_is_lost_ends_guestd_with_status_1_and_its_name(daemon: Daemon) -> None:
    """systemd starts it again, and the next start opens another file (docs/decisions/0059)."""
    guest = daemon.guest()
    daemon.start()
    store_one(daemon, guest)
    (daemon.spool / "spool.db").unlink()
    guest.write(metrics_line())
    assert daemon.process is not None
    assert daemon.process.wait(60) == 1
    ends = [
        str(line) for line in daemon.logged() if "spool.db" in str(line) and "restarting with a new file" in str(line)
    ]
    assert ends
    guest.hang_up()
    daemon.start()
    store_one(daemon, guest)
    assert daemon.stop() == 0
