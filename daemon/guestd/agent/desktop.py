"""A program as the desktop shows it: its name, a description and its icon, from .desktop files."""

from __future__ import annotations

import base64
import configparser
import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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


def find_entry(executable: str) -> Entry | None:
    """The desktop entry of this executable, by its file name."""
    stamps = tuple(_stamp(directory) for directory in DIRECTORIES)
    return _read_entries(stamps).get(Path(executable).name)


@lru_cache(maxsize=256)
def icon_base64(icon: str) -> str | None:
    """The PNG of about 64x64 pixels under this name or path; None when there is none or it is large."""
    for path in [Path(icon), *(directory / f"{icon}.png" for directory in ICON_DIRECTORIES)]:
        try:
            if path.suffix == ".png" and path.stat().st_size <= LARGEST_ICON_BYTES:
                return base64.b64encode(path.read_bytes()).decode()
        except OSError:
            continue
    return None


def _stamp(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _read_entries(stamps: tuple[int, ...]) -> dict[str, Entry]:  # noqa: ARG001 - the key under which they are kept
    """All entries by command, read again when a directory has changed."""
    entries: dict[str, Entry] = {}
    for directory in DIRECTORIES:
        for path in sorted(directory.glob("*.desktop")):
            if (entry := _read_entry(path)) is not None:
                entries.setdefault(entry.command, entry)
    return entries


def _read_entry(path: Path) -> Entry | None:
    try:
        return parse_entry(path.read_text(errors="replace"))
    except OSError:
        return None
