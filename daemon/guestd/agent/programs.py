"""What the files of programs add to applications: their size and age, and how the desktop shows them.

A program may lie on a mount that no longer answers, and its record outlives the mount: every file is read with a
deadline, and those of one mount wait together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from guestd.agent import desktop
from guestd.agent.parts import Parts
from guestd.agent.payload import Application, clean, rfc3339
from guestd.core.mounts import parse_mounts

FILE_SECONDS = 2.0


class ProgramFiles:
    """Reads the files of programs; an icon is read once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._shown_icons: set[str] = set()

    def describe(self, applications: list[Application]) -> None:
        """Add to each application what its files show."""
        mounts: frozenset[str] = self._parts.read("mounts", read_mount_points, frozenset())
        stats = self._parts.read_each(
            "program_files", [each.exe_path for each in applications], _stat, FILE_SECONDS,
            lambda path: get_mount_point(path, mounts),
        )  # fmt: skip
        entries: Mapping[str, desktop.Entry] = self._parts.read("desktop", desktop.read_entries, {})
        icons: dict[str, str] = {}
        for application in applications:
            size_and_age = stats.get(application.exe_path)
            if size_and_age is not None:
                application.file_size, application.last_modified = size_and_age
            entry = desktop.find_entry(application.exe_path, entries)
            if entry is not None:
                application.name = clean(entry.name)
                application.description = clean(entry.description) if entry.description else None
                if entry.icon and application.exe_path not in self._shown_icons:
                    icons[application.exe_path] = entry.icon
        self._add_icons(applications, icons)

    def _add_icons(self, applications: list[Application], icons: dict[str, str]) -> None:
        found = self._parts.read_each("icons", list(icons), lambda path: desktop.icon_base64(icons[path]), FILE_SECONDS)
        self._shown_icons.update(found)
        for application in applications:
            application.icon_base64 = found.get(application.exe_path)
            application.icon_format = "png" if application.icon_base64 else None


def _stat(path: str) -> tuple[int, str | None] | None:
    """Size and time of the last change; None when the program was removed or replaced while it runs."""
    try:
        known = Path(path).stat()
    except (OSError, ValueError):
        return None
    return known.st_size, rfc3339(known.st_mtime)


def read_mount_points() -> frozenset[str]:
    """The mount points of this machine; reading them touches none of the mounts."""
    try:
        text = Path(psutil.PROCFS_PATH, "self/mounts").read_text(errors="surrogateescape")
    except FileNotFoundError:  # a system without /proc
        return frozenset()
    return frozenset(parse_mounts(text))


def get_mount_point(path: str, mounts: frozenset[str]) -> str:
    """The mount point on which a path lies by its name; `/` if none is known."""
    return next((str(parent) for parent in Path(path).parents if str(parent) in mounts), "/")
