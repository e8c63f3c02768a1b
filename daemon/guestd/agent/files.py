"""Reading of files that anybody may have put there: regular ones only, and not more than a limit."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class FileTooLarge(OSError):
    """A file is larger than what is read of its kind."""


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The content of a regular file. Raises FileTooLarge, and OSError when it is another kind or cannot be read.

    A FIFO without a writer would block, a device may act on being opened, and /dev/zero never ends.
    """
    _check_kind(path, path.stat().st_mode)
    # It may be another file by now.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    with os.fdopen(fd, "rb") as file:
        _check_kind(path, os.fstat(fd).st_mode)
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise FileTooLarge(errno.EFBIG, f"larger than {limit_bytes} bytes", os.fspath(path))
    return content


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
