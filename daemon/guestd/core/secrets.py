"""Secrets by file: what a setting or an argument names is a path, and nobody else may read what is there."""

from __future__ import annotations

import stat
from pathlib import Path

from guestd.core.errors import ConfigError


def first_line(path: Path, named_by: str) -> bytes:
    """The secret in a file: its first line as it stands, hexadecimal digits or any text, without spaces around it.

    ConfigError, with `named_by` (the setting or argument), when it cannot be read, is empty, or everybody may read it.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{named_by} {path}: {exc.strerror}") from exc
    if mode & stat.S_IROTH:
        raise ConfigError(f"{named_by} {path}: everybody may read it; chmod o-rwx {path}")
    secret = content.partition(b"\n")[0].strip()
    if not secret:
        raise ConfigError(f"{named_by} {path}: its first line is empty")
    return secret
