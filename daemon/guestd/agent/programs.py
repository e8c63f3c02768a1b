"""What the files of programs add to applications: their size and age, and how the desktop shows them.

A program may lie on a mount that no longer answers, and its record outlives the mount: every file is read with a
deadline, and those of one remote mount wait together. Any user may choose the names of programs and what is at them:
no symbolic link is followed, and none of them makes the others wait.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Set
from pathlib import Path

import psutil

from guestd.agent import desktop
from guestd.agent.parts import Parts
from guestd.agent.payload import Application, clean, rfc3339
from guestd.core.mounts import parse_mounts

FILE_SECONDS = 2.0
# File systems of another machine or of a program: what lies on one hangs together. Each with the kinds of its family:
# nfs4, fuse.sshfs, smb3.
_REMOTE = ("nfs", "fuse", "cifs", "smb", "9p", "ceph", "afs", "virtiofs", "glusterfs", "lustre", "autofs")


class ProgramFiles:
    """Reads the files of programs; an icon is read once."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._shown_icons: set[str] = set()

    def describe(self, applications: list[Application], files: Set[str]) -> None:
        """Add to each application what its files show; only those of `files` are examined."""
        mounts: Mapping[str, str] = self._parts.read("mounts", read_mounts, {})
        paths = [each.exe_path for each in applications if each.exe_path in files]
        stats = self._parts.read_each(
            "program_files", paths, read_size_and_age, FILE_SECONDS, lambda path: get_group(path, mounts)
        )
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


def read_size_and_age(path: str) -> tuple[int, str | None] | None:
    """Size and time of the last change; None when the program was removed or replaced.

    The kernel names a program without symbolic links. One on its path was put there later, and may lead anywhere.
    """
    program = Path(path)
    if not program.is_absolute():  # the kernel's "(unreachable)", of a file whose mount is gone
        return None
    try:
        if any(stat.S_ISLNK(os.lstat(directory).st_mode) for directory in reversed(program.parents)):
            return None
        known = os.lstat(program)
    except (OSError, ValueError):
        return None
    return (known.st_size, rfc3339(known.st_mtime)) if stat.S_ISREG(known.st_mode) else None


def read_mounts() -> Mapping[str, str]:
    """The kind of file system by mount point; reading them touches none of the mounts."""
    try:
        text = Path(psutil.PROCFS_PATH, "self/mounts").read_text(errors="surrogateescape")
    except FileNotFoundError:  # a system without /proc
        return {}
    return parse_mounts(text)


def get_group(path: str, mounts: Mapping[str, str]) -> str:
    """With what a path waits when a file hangs: its mount point where that is remote, else only itself."""
    mount = next((str(parent) for parent in Path(path).parents if str(parent) in mounts), None)
    return mount if mount is not None and mounts[mount].startswith(_REMOTE) else path
