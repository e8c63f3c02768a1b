"""`guestd setup`: what systemd is to know of guestd, laid down from the wheel; after an upgrade again.

The configuration is its operator's: where there is one it is left alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from guestd.core.errors import ConfigError

UNIT = Path("etc/systemd/system/guestd.service")
CONFIGURATION = Path("etc/guestd/guestd.toml")
TMPFILES = Path("etc/tmpfiles.d/guestd.conf")
# What ours are, where they go.
_OURS = {
    "systemd/sysusers.conf": Path("etc/sysusers.d/guestd.conf"),
    "systemd/tmpfiles.conf": TMPFILES,
    "systemd/guestd.service": UNIT,
}
NOTIFY_RELOAD = Path("etc/systemd/system/guestd.service.d/notify-reload.conf")
# The first that knows Type=notify-reload.
NOTIFY_RELOAD_SYSTEMD = 253
# What the unit names, and what ProtectHome= hides from it.
SHIPPED_PROGRAM, HOMES = "/usr/local/bin/guestd", ("/home", "/root", "/run/user")


def set_up() -> Iterator[str]:
    """Lay everything down on this host, as root; a line for each step. ConfigError when it cannot be."""
    root, program = Path("/"), installed_program()
    version = re.search(r"systemd (\d+)", _ran("systemctl", "--version"))
    yield from units_laid_down(root, program, int(version[1]) if version else 0)
    _ran("systemd-sysusers", str(root / _OURS["systemd/sysusers.conf"]))
    _ran("systemd-tmpfiles", "--create", str(root / TMPFILES))
    yield from configuration_laid_down(root)
    _ran("systemctl", "daemon-reload")
    yield "systemd knows the unit: next is `guestd check`, then `systemctl restart guestd`"


def installed_program() -> Path:
    """The guestd of PATH, which the unit is to start; ConfigError when its user could not."""
    found = shutil.which("guestd")
    if found is None:
        raise ConfigError("setup: there is no guestd on PATH for the unit to start")
    program = Path(found).absolute()
    if any(each.is_relative_to(home) for home in HOMES for each in (program, program.resolve())):
        raise ConfigError(
            f"setup: {program} is in a home, which the unit does not see; docs/operations.md says where to"
        )
    return program


def units_laid_down(root: Path, program: Path, systemd_version: int) -> Iterator[str]:
    """Write what is ours below a root, over what an older guestd wrote there."""
    for source, place in _OURS.items():
        yield _written(root / place, _shipped(source).replace(SHIPPED_PROGRAM, str(program)))
    if systemd_version >= NOTIFY_RELOAD_SYSTEMD:
        yield _written(root / NOTIFY_RELOAD, _shipped("systemd/notify-reload.conf"))


def configuration_laid_down(root: Path) -> Iterator[str]:
    """Write the configuration with its defaults, unless there is one."""
    place = root / CONFIGURATION
    yield f"{place}: left as it is" if place.exists() else _written(place, _shipped("guestd.toml"))


def _shipped(name: str) -> str:
    return files("guestd").joinpath("deploy", name).read_text()


def _written(place: Path, text: str) -> str:
    if place.exists() and place.read_text() == text:
        return f"{place}: as it was"
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(0o644)
    return f"{place}: written"


def _ran(*command: str) -> str:
    """What a command says; ConfigError when it is not there or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as exc:
        raise ConfigError(f"setup: this host has no {command[0]}") from exc
    except subprocess.CalledProcessError as exc:
        raise ConfigError(f"setup: {' '.join(command)}: {exc.stderr.strip()}") from exc
