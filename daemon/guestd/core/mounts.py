"""The mounts of this machine, as the kernel lists them. Pure."""

from __future__ import annotations

import re

# The characters that would end a field, as octal numbers: see fstab(5).
_ESCAPE = re.compile(r"\\([0-7]{3})")


def parse_mounts(text: str) -> dict[str, str]:
    """The kind of file system by mount point, from /proc/self/mounts; the last mount of a place hides the others.

    A mount point is bytes: read the file with surrogateescape.
    """
    fields = (line.split(" ") for line in text.split("\n"))
    return {_unescape(each[1]): each[2] for each in fields if len(each) > 2}


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
