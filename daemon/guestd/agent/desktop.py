"""A program as the desktop shows it: its name, a description and its icon, from .desktop files."""

from __future__ import annotations

import base64
import configparser
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from guestd.agent.files import read_file

# In the order of the desktop entry specification: a machine's own before the distribution's.
DIRECTORIES = (
    Path("/usr/local/share/applications"),
    Path("/usr/share/applications"),
    Path("/var/lib/flatpak/exports/share/applications"),
    Path("/var/lib/snapd/desktop/applications"),
)
ICON_DIRECTORIES = (
    Path("/usr/share/icons/hicolor/64x64/apps"),
    Path("/usr/share/icons/hicolor/48x48/apps"),
    Path("/usr/share/pixmaps"),
)
# A picture of 64x64 is smaller; what is larger is a picture of another size.
LARGEST_ICON_BYTES = 32 * 1024
# With a hundred translations an entry has 20 KiB.
LARGEST_ENTRY_BYTES = 256 * 1024
_PNG = b"\x89PNG"
# A program that is started through one of these cannot be told by its executable.
_INTERPRETERS = frozenset({"sh", "bash", "env", "perl", "python", "python3", "java", "node", "gjs", "flatpak", "sudo"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One program of the desktop; `command` is the file name of what it starts."""

    command: str
    name: str
    description: str | None
    icon: str | None


def parse_entry(text: str) -> Entry | None:
    """A .desktop file; None when it starts no program of its own or cannot be read."""
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
        entry = parser["Desktop Entry"]
        words = shlex.split(entry["Exec"])
        command = Path(words[0]).name if words else ""
        if not command or command in _INTERPRETERS:
            return None
        return Entry(command, entry["Name"], entry.get("Comment"), entry.get("Icon"))
    except (configparser.Error, KeyError, ValueError):
        return None


def find_entry(executable: str, entries: Mapping[str, Entry]) -> Entry | None:
    """The desktop entry of this executable, by its file name."""
    return entries.get(executable.rpartition("/")[2])


def read_entries(directories: tuple[Path, ...] = DIRECTORIES) -> Mapping[str, Entry]:
    """All entries by command; those of a directory that has not changed are not read again."""
    return _read_entries(directories, tuple(_stamp(directory) for directory in directories))


def icon_base64(icon: str) -> str | None:
    """The PNG of about 64x64 pixels under this name or path; None when there is none or it is large."""
    for path in [Path(icon), *(directory / f"{icon}.png" for directory in ICON_DIRECTORIES)]:
        try:
            content = read_file(path, LARGEST_ICON_BYTES) if path.suffix == ".png" else b""
        except (OSError, ValueError):
            continue
        # An entry may name any file of the machine: what is no picture is not sent.
        if content.startswith(_PNG):
            return base64.b64encode(content).decode()
    return None


def _stamp(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _read_entries(directories: tuple[Path, ...], stamps: tuple[int, ...]) -> Mapping[str, Entry]:  # noqa: ARG001 - the key under which they are kept
    entries: dict[str, Entry] = {}
    for directory in directories:
        for path in sorted(directory.glob("*.desktop")):
            if (entry := _read_entry(path)) is not None:
                entries.setdefault(entry.command, entry)
    return entries


def _read_entry(path: Path) -> Entry | None:
    try:
        return parse_entry(read_file(path, LARGEST_ENTRY_BYTES).decode(errors="replace"))
    except OSError:
        return None
