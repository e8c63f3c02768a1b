"""What guestd reports to systemd, received on a socket in place of systemd's."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from tools.harness.waiting import eventually

from support.daemon import Daemon


@pytest.fixture
def notifications(daemon: Daemon) -> Iterator[socket.socket]:
    """The socket for notifications; the watchdog limit is 2 s."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(daemon.directory / "notify"))
        listener.settimeout(90)
        daemon.wrapper = ["env", f"NOTIFY_SOCKET={daemon.directory / 'notify'}", "WATCHDOG_USEC=2000000"]
        yield listener


def wait_for(notifications: socket.socket, prefix: str) -> str:
    """Wait for the next message that begins with a prefix."""
    while not (message := notifications.recv(65536).decode()).startswith(prefix):
        pass
    return message


def reload(daemon: Daemon) -> None:
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)


def test_ready_status_and_watchdog_pings_are_sent(daemon: Daemon, notifications: socket.socket) -> None:
    daemon.start()
    wait_for(notifications, "READY=1")
    assert wait_for(notifications, "STATUS=").startswith("STATUS=0 channels, 0 frames in the spool")
    for _ in range(3):
        wait_for(notifications, "WATCHDOG=1")
    daemon.stop()
    wait_for(notifications, "STOPPING=1")


def test_a_reload_logs_applied_keys_and_keys_that_need_a_restart(daemon: Daemon, notifications: socket.socket) -> None:
    daemon.start()
    wait_for(notifications, "READY=1")
    file = daemon.directory / "guestd.toml"
    file.write_text(
        file.read_text().replace("listen_port = 0", "listen_port = 1") + '[privacy]\ncommand_lines = "off"\n'
    )
    reload(daemon)
    assert "MONOTONIC_USEC=" in wait_for(notifications, "RELOADING=1")
    wait_for(notifications, "READY=1")
    logged = {line.get("event"): line for line in daemon.logged()}
    assert logged["configuration reloaded"]["applied"] == ["privacy.command_lines"]
    assert logged["configuration changes need a restart of guestd"]["keys"] == ["telemetry.listen_port"]
    assert daemon.page("/healthz") == (200, "alive\n")


def test_a_reload_of_an_invalid_configuration_keeps_the_previous_one(
    daemon: Daemon, notifications: socket.socket
) -> None:
    daemon.start()
    wait_for(notifications, "READY=1")
    (daemon.directory / "guestd.toml").write_text("[limits]\nframes = 1\n")
    reload(daemon)
    wait_for(notifications, "READY=1")
    eventually(
        lambda: any("configuration not reloaded" in str(line.get("event")) for line in daemon.logged()), "it is logged"
    )
    assert daemon.page("/healthz") == (200, "alive\n")
    assert daemon.stop() == 0
