"""Strangers at the pages of a running guestd: its guests are read, its samples stored, and its operators answered."""

import base64
import contextlib
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import bcrypt
from tools.harness.waiting import eventually

from guestd.core.descriptors import KEPT_FROM_CHANNELS
from guestd.service.connections import MAX_CONNECTIONS
from support.daemon import Daemon, execute, metrics_line, rows

HASHED = bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()
STRANGERS = 100
FEW = 160


def port_of(daemon: Daemon) -> int:
    return int(daemon.url().rpartition(":")[2])


def log_in(port: int, password: str, source: str) -> int:
    """The status of /readyz for one new connection; 0 if it was ended."""
    header = {"Authorization": "Basic " + base64.b64encode(f"alice:{password}".encode()).decode()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    try:
        connection.request("GET", "/readyz", headers=header)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@contextlib.contextmanager
def guessing(port: int) -> Iterator[Counter[int]]:
    """Strangers with an address each who log in all the time; the statuses that they got so far."""
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def guess(number: int) -> None:
        while not stop.is_set():
            statuses[log_in(port, f"wrong {number}", f"127.0.1.{number + 1}")] += 1

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(STRANGERS)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def count_descriptors(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def test_wrong_passwords_keep_neither_operators_nor_guests_waiting(daemon: Daemon) -> None:
    (daemon.directory / "web.yml").write_text(f'basic_auth_users: {{alice: "{HASHED}"}}\n')
    daemon.telemetry_lines = f'web_config_file = "{daemon.directory / "web.yml"}"\n'
    guest = daemon.guest()
    daemon.start()
    guest.write(metrics_line())
    port = port_of(daemon)
    descriptors = count_descriptors(daemon)
    with guessing(port) as statuses:
        eventually(lambda: statuses[503] > STRANGERS, "more passwords wait than are checked")
        # One who has never logged in before, and then each time.
        eventually(lambda: log_in(port, "right", "127.0.2.1") == 200, "the right password is accepted")
        checked = statuses[401]
        for _ in range(100):
            assert log_in(port, "right", "127.0.2.1") == 200
        assert statuses[401] - checked < 100 * 10, "the right password waited for wrong ones"
        fresh = daemon.guest()
        fresh.write(metrics_line())
        guest.write(metrics_line())
        stored = 'SELECT count(*) FROM "SystemMetrics"'
        eventually(lambda: rows(daemon.dsn, stored) == [(3,)], "samples of the old guest and the new are stored")
        assert count_descriptors(daemon) <= descriptors + MAX_CONNECTIONS + 20
    assert set(statuses) <= {0, 401, 503}
    assert statuses[401] > 0
    eventually(lambda: count_descriptors(daemon) <= descriptors + 5, "all connections of strangers have ended")
    assert len(daemon.logged()) < 30


def test_six_hundred_silent_connections_leave_descriptors_for_guests(daemon: Daemon) -> None:
    daemon.wrapper = ["prlimit", "--nofile=256:256"]
    daemon.start()
    port = port_of(daemon)
    with contextlib.ExitStack() as silent:
        for number in range(600):
            address = ("127.0.0.1", port)
            silent.enter_context(socket.create_connection(address, 60, (f"127.0.1.{1 + number % 200}", 0)))
        guests = [daemon.guest() for _ in range(20)]
        for guest in guests:
            guest.write(metrics_line())
        stored = 'SELECT count(*) FROM "SystemMetrics"'
        eventually(lambda: rows(daemon.dsn, stored) == [(len(guests),)], "the guests' samples are stored")
        assert daemon.page("/healthz") == (200, "alive\n")
        eventually(
            lambda: daemon.metric("guestd_pages_connections_closed_total", reason="replaced") > 400,
            "silent connections made room",
        )
        assert daemon.metric("guestd_pages_connections") <= MAX_CONNECTIONS


def test_channels_leave_descriptors_for_the_store(daemon: Daemon) -> None:
    daemon.wrapper = ["prlimit", f"--nofile={FEW}:{FEW}"]
    guests = [daemon.guest() for _ in range(FEW)]
    daemon.start()
    eventually(lambda: "last file descriptors are kept" in daemon.log.read_text(), "the rest of the channels waits")
    connected = [each for each in guests if each.has_a_connection()]
    assert FEW / 2 < len(connected) < FEW - KEPT_FROM_CHANNELS
    execute(
        daemon.dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    for guest in connected:
        guest.write(metrics_line())
    stored = 'SELECT count(*) FROM "SystemMetrics"'
    eventually(lambda: rows(daemon.dsn, stored) == [(len(connected),)], "guestd has connected to the store again", 90)
