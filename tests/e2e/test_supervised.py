"""What guestd tells its supervisor, without one: a socket in the place of systemd's."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from support.daemon import Daemon, eventually


@pytest.fixture
def heard(daemon: Daemon) -> Iterator[socket.socket]:
    """Where the daemon's words for systemd arrive; it is told that a watchdog waits 2 s for it."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(daemon.directory / "notify"))
        listener.settimeout(90)
        daemon.wrapper = ["env", f"NOTIFY_SOCKET={daemon.directory / 'notify'}", "WATCHDOG_USEC=2000000"]
        yield listener


def until(heard: socket.socket, word: str) -> str:
    """The next message that begins with a word."""
    while not (said := heard.recv(65536).decode()).startswith(word):
        pass
    return said


def reload(daemon: Daemon) -> None:
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGHUP)


def test_it_is_ready_says_how_things_stand_and_feeds_the_watchdog(daemon: Daemon, heard: socket.socket) -> None:
    daemon.start()
    until(heard, "READY=1")
    assert until(heard, "STATUS=").startswith("STATUS=0 channels, 0 frames in the spool")
    for _ in range(3):
        until(heard, "WATCHDOG=1")
    daemon.stop()
    until(heard, "STOPPING=1")


def test_a_reload_says_what_is_in_force_and_what_needs_a_restart(daemon: Daemon, heard: socket.socket) -> None:
    daemon.start()
    until(heard, "READY=1")
    file = daemon.directory / "guestd.toml"
    file.write_text(
        file.read_text().replace("listen_port = 0", "listen_port = 1") + '[privacy]\ncommand_lines = "off"\n'
    )
    reload(daemon)
    assert "MONOTONIC_USEC=" in until(heard, "RELOADING=1")
    until(heard, "READY=1")
    said = {line.get("event"): line for line in daemon.logged()}
    assert said["the configuration was reloaded"]["in_force"] == ["privacy.command_lines"]
    assert said["these changes need a restart"]["keys"] == ["telemetry.listen_port"]
    assert daemon.page("/healthz") == (200, "alive\n")


def test_a_reload_of_a_bad_configuration_leaves_the_old_one_in_force(daemon: Daemon, heard: socket.socket) -> None:
    daemon.start()
    until(heard, "READY=1")
    (daemon.directory / "guestd.toml").write_text("[limits]\nframes = 1\n")
    reload(daemon)
    until(heard, "READY=1")
    eventually(lambda: any("was not reloaded" in str(line.get("event")) for line in daemon.logged()), "it says so")
    assert daemon.page("/healthz") == (200, "alive\n")
    assert daemon.stop() == 0
