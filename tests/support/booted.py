"""guestd under a real systemd, as deploy/systemd installs it: its own user, its own rights."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tools.harness.booted import Booted, obstacle
from tools.harness.waiting import eventually

from support.daemon import REPOSITORY, Guest, add_machine

DEPLOY = REPOSITORY / "deploy/systemd"
# The interpreter may live in somebody's home, which the unit may not see: it is shown under another name.
PYTHON, PACKAGES, WHEEL, CHANNELS = "/opt/python", "/opt/packages", "/opt/wheel", "/srv/channels"


class Host:
    """A booted machine with guestd installed from a wheel, and its guests."""

    def __init__(self, directory: Path, dsn: str, wheel: Path) -> None:
        self.directory = directory
        self.dsn = dsn
        self.wheel = wheel
        self.port = 0
        self.machine = Booted(directory / "machine")
        self.channels = directory / "channels"
        self.channels.mkdir()
        self.etc = self.machine.root / "etc"
        self.guests: list[Guest] = []

    def up(self, own_names: Iterable[Path] = ()) -> None:
        """Boot, and do what docs/operations.md has an operator do; directories of `own_names` are there as they are."""
        python = Path(sys.base_prefix)
        binds = {Path(sysconfig.get_path("purelib")): PACKAGES, self.channels: CHANNELS}
        binds |= {directory: str(directory) for directory in own_names}
        self._install_program("/usr/bin/python3" if python == Path("/usr") else f"{PYTHON}/bin/python3")
        self.machine.up(binds if python == Path("/usr") else binds | {python: PYTHON})
        self.follow("Install")
        # As QEMU's sockets are: its group may write them.
        self.run("chgrp", "-R", "libvirt-qemu", CHANNELS)
        self.configure()

    def follow(self, section: str) -> str:
        """Run the commands of a section of docs/operations.md, until one fails; what they say."""
        text = (REPOSITORY / "docs/operations.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        (commands,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        said = self.run("sh", "-exc", f"export PATH=/opt/bin:$PATH\n{commands}echo all of it")
        assert said.endswith("all of it\n"), said
        return said

    def _install_program(self, python: str) -> None:
        program = self.machine.root / "opt/bin/guestd"
        program.parent.mkdir()
        with zipfile.ZipFile(self.wheel) as archive:
            archive.extractall(self.machine.root / WHEEL.removeprefix("/"))
        path = f"{WHEEL}:{PACKAGES}"
        variables = f"LD_LIBRARY_PATH={PYTHON}/lib PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path}"
        program.write_text(f'#!/bin/sh\n{variables} exec {python} -m guestd "$@"\n')
        program.chmod(0o755)
        drop_in = self.etc / "systemd/system/guestd.service.d/here.conf"
        drop_in.parent.mkdir()
        # A frozen daemon is found sooner than on a host; the rest is the unit's own.
        drop_in.write_text("[Service]\nWatchdogSec=5\nRestartSec=0.2\n")

    def configure(self, more: str = "", virtio: str = f'directory = "{CHANNELS}"') -> None:
        """Write its configuration, `more` of which begins in [telemetry]; it is read at the next start or reload."""
        (self.etc / "guestd/guestd.toml").write_text(
            f'[store]\ndsn = "{self.dsn}"\n[virtio]\n{virtio}\n[telemetry]\nlisten_port = {self.port}\n{more}'
        )

    def secret(self, name: str, text: str) -> None:
        """Write a credential of the unit; it is read at the next start."""
        file = self.etc / "guestd/credentials" / name
        file.write_text(text)
        file.chmod(0o600)

    def guest(self) -> Guest:
        """A guest of a new machine, whose socket QEMU's group may use."""
        guest = Guest(self.channels, add_machine(self.dsn))
        self.guests.append(guest)
        guest.path.chmod(0o770)
        self.run("chgrp", "libvirt-qemu", f"{CHANNELS}/{guest.path.name}")
        return guest

    def run(self, *command: str) -> str:
        """Run a command on the machine."""
        return self.machine.run(*command)

    def show(self, name: str) -> str:
        """One of the unit's properties."""
        return self.run("systemctl", "show", "guestd", f"--property={name}", "--value").strip()

    def is_up(self, after: str = "") -> None:
        """Wait until guestd is active under another process id than `after`."""
        eventually(
            lambda: self.show("ActiveState") == "active" and self.show("MainPID") not in (after, "0"),
            "guestd is active",
            30,
        )

    def journal(self) -> list[dict[str, Any]]:
        """What the journal has of the unit."""
        lines = self.run("journalctl", "--unit=guestd", "--output=json", "--no-pager").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def messages(self) -> str:
        """The same, for people."""
        return "\n".join(str(line.get("MESSAGE")) for line in self.journal())

    def logs(self, words: str) -> None:
        """Wait until a line of the journal holds these words."""
        eventually(lambda: words in self.messages(), words)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a release would be."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture
def host(dsn: str, wheel: Path) -> Iterator[Host]:
    """A machine that is up, with guestd installed and not started."""
    with booted(dsn, wheel) as host:
        yield host


@contextmanager
def booted(dsn: str, wheel: Path, own_names: Iterable[Path] = ()) -> Iterator[Host]:
    """The same, which also sees these directories of this host, under their own names."""
    exc = obstacle()
    if exc is not None:
        pytest.skip(f"no systemd can be booted here: {exc}")
    directory = Path(tempfile.mkdtemp(prefix="guestd-"))
    # guestd's user must get to the channels.
    directory.chmod(0o755)
    host = Host(directory, dsn, wheel)
    try:
        host.up(own_names)
        yield host
    finally:
        for guest in host.guests:
            guest.leave()
        host.machine.down()
        shutil.rmtree(directory, ignore_errors=True)
