"""`guestd setup`: installs the files that systemd needs on this host, from the wheel; run it again after an upgrade.

The configuration belongs to the operator: one that exists is not touched.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator, Set
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from guestd.cli.arguments import add_verb
from guestd.core.config import load_settings
from guestd.core.errors import ConfigError
from guestd.core.groups import GROUP, TAKE_GROUP, USER, list_groups
from guestd.hypervisor.uri import get_socket

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

UNIT = Path("etc/systemd/system/guestd.service")
CONFIGURATION = Path("etc/guestd/guestd.toml")
TMPFILES = Path("etc/tmpfiles.d/guestd.conf")
# Files of the wheel, and their destinations.
_FILES = {
    "systemd/sysusers.conf": Path("etc/sysusers.d/guestd.conf"),
    "systemd/tmpfiles.conf": TMPFILES,
    "systemd/guestd.service": UNIT,
}
# Only where libvirt.uri is set: its group can do what root can.
LIBVIRT_GROUP = Path("etc/sysusers.d/guestd-libvirt.conf")
NOTIFY_RELOAD = Path("etc/systemd/system/guestd.service.d/notify-reload.conf")
# The first release with Type=notify-reload.
NOTIFY_RELOAD_SYSTEMD = 253
# What the unit names, and what ProtectHome= hides from it.
SHIPPED_PROGRAM, HOMES = "/usr/local/bin/guestd", ("/home", "/root", "/run/user")

DESCRIPTION = """\
Installs guestd on this host, as root: the user, the directories, the systemd unit, and a configuration with every
setting at its default. It overwrites the unit of an earlier release and leaves an existing configuration alone. Run it
again after an upgrade, and after libvirt.uri was set or cleared: where it names the libvirtd of this host, guestd's
user gets the group of libvirt's socket. It neither starts nor restarts anything.
"""
EPILOG = """\
next steps:
  edit /etc/guestd/guestd.toml
  guestd setup     # again, if libvirt.uri was set
  guestd check --config /etc/guestd/guestd.toml
  systemctl enable --now guestd

exit status: 0 installed, 1 a file cannot be written, 2 wrong usage, 78 guestd is not on PATH or is in a home directory,
or systemd is missing
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "setup",
        summary="install user, directories, unit and configuration (as root)",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Install, and print each step; returns the exit status."""
    from guestd.cli.terminal import make_console, print_line

    console = make_console()
    for line in install():
        print_line(console, line)
    return 0


def install() -> Iterator[str]:
    """Install everything on this host, as root; a line for each step. Raises ConfigError where that is impossible."""
    root, program = Path("/"), find_program()
    version = re.search(r"systemd (\d+)", _run_command("systemctl", "--version"))
    yield from install_unit(root, program, int(version[1]) if version else 0)
    yield from install_configuration(root)
    yield from install_libvirt_group(root, list_groups())
    groups = [str(root / LIBVIRT_GROUP)] if (root / LIBVIRT_GROUP).exists() else []
    _run_command("systemd-sysusers", str(root / _FILES["systemd/sysusers.conf"]), *groups)
    _run_command("systemd-tmpfiles", "--create", str(root / TMPFILES))
    _run_command("systemctl", "daemon-reload")
    yield "systemd has loaded the unit; next: `guestd check`, then `systemctl restart guestd`"


def find_program() -> Path:
    """The guestd on PATH, which the unit will start; ConfigError when the unit's user could not start it."""
    found = shutil.which("guestd")
    if found is None:
        raise ConfigError("setup: there is no guestd on PATH for the unit to start; docs/operations.md says how to")
    program = Path(found).absolute()
    if any(each.is_relative_to(home) for home in HOMES for each in (program, program.resolve())):
        raise ConfigError(
            f"setup: {program} is in a home directory, which the unit cannot see; install it as docs/operations.md says"
        )
    return program


def install_unit(root: Path, program: Path, systemd_version: int) -> Iterator[str]:
    """Write the files of the wheel below a root, over those of an earlier release."""
    for source, place in _FILES.items():
        yield _write(root / place, _read_shipped(source).replace(SHIPPED_PROGRAM, str(program)))
    if systemd_version >= NOTIFY_RELOAD_SYSTEMD:
        yield _write(root / NOTIFY_RELOAD, _read_shipped("systemd/notify-reload.conf"))


def install_configuration(root: Path) -> Iterator[str]:
    """Write the configuration with its defaults, unless there is one."""
    place = root / CONFIGURATION
    yield f"{place}: exists, kept" if place.exists() else _write(place, _read_shipped("guestd.toml"))


def install_libvirt_group(root: Path, groups: Set[str]) -> Iterator[str]:
    """Give guestd's user the group of libvirt's socket if the configuration names it; otherwise say how to take it.

    `groups`: those that the user has.
    """
    place = root / LIBVIRT_GROUP
    try:
        socket = get_socket(load_settings(root / CONFIGURATION).libvirt.uri)
    except (ConfigError, ValueError) as exc:
        yield f"{place}: left as it is, because the configuration cannot be read: {exc}"
        return
    if socket:
        yield _write(place, _read_shipped("systemd/sysusers-libvirt.conf"))
        return
    if place.exists():
        place.unlink()
        yield f"{place}: removed, because libvirt.uri names no libvirtd of this host"
    if GROUP in groups:
        yield f"{USER} is still in the group {GROUP}, which can do what root can: {TAKE_GROUP}"


def _read_shipped(name: str) -> str:
    return files("guestd").joinpath("deploy", name).read_text()


def _write(place: Path, text: str) -> str:
    if place.exists() and place.read_text() == text:
        return f"{place}: unchanged"
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(0o644)
    return f"{place}: written"


def _run_command(*command: str) -> str:
    """The output of a command; ConfigError when it is missing or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as exc:
        raise ConfigError(f"setup: this host has no {command[0]}") from exc
    except subprocess.CalledProcessError as exc:
        raise ConfigError(f"setup: {' '.join(command)}: {exc.stderr.strip()}") from exc
