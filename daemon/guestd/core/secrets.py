"""Secrets are read from files: a setting or argument names the path, and the file must not be world-readable."""

from __future__ import annotations

import stat
from pathlib import Path

from guestd.core.errors import ConfigError


def read_secret(path: Path, named_by: str) -> bytes:
    """Read the secret in a file: its first line (hexadecimal digits or any text), stripped of whitespace.

    Raises ConfigError, naming the setting or argument `named_by`, if the file is unreadable, empty or world-readable.
    """
    require_private(path, named_by)
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{named_by} {path}: {exc.strerror}") from exc
    secret = content.partition(b"\n")[0].strip()
    if not secret:
        raise ConfigError(f"{named_by} {path}: its first line is empty")
    return secret


def require_private(path: Path, named_by: str) -> None:
    """Raise ConfigError, naming the setting or argument `named_by`, if a file does not exist or is world-readable."""
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise ConfigError(f"{named_by} {path}: {exc.strerror}") from exc
    if mode & stat.S_IROTH:
        raise ConfigError(f"{named_by} {path}: it is world-readable; run: chmod o-rwx {path}")


def read_secret_text(path: Path, named_by: str) -> str:
    """Like `read_secret`, for a secret that is passed on as text; raises ConfigError if it is not UTF-8."""
    try:
        return read_secret(path, named_by).decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{named_by} {path}: its first line is not UTF-8") from exc
