"""What guestd keeps of its session at a broker, beside the spool: its client id, and which session it had.

A client id names a session, with the messages that are queued in it: who knows it can take the session, unless the
broker ties ids to users. So guestd chooses one that cannot be guessed, and keeps it. The earlier default was
`guestd-<host name>`; where a spool shows an earlier guestd, that id stays until the broker has no session under it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec
import structlog
from msgspec import Struct

from guestd.core.config import get_local_name
from guestd.core.errors import ConfigError

log = structlog.get_logger()

FILE = "mqtt-session.json"
_ID_BYTES = 16
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class KnownSession(Struct, frozen=True, kw_only=True):
    """A session that the broker has kept for us. `client_id` empty: the broker names it by the user.

    `seen_at` is in Unix seconds. `keep_seconds`: how long the broker keeps it while guestd is away; None if unknown.
    """

    broker: str
    client_id: str
    username: str
    topic: str
    seen_at: float
    keep_seconds: int | None

    @property
    def name(self) -> str:
        """The id under which the broker has it."""
        return self.client_id or self.username


class _Content(Struct, frozen=True, kw_only=True):
    client_id: str
    session: KnownSession | None = None


def make_public_name() -> str:
    """The name of this guestd that others may know; until 2026-12 also its default client id."""
    return f"guestd-{get_local_name()}"


class SessionFile:
    """The file in the spool's directory, created if it is missing. Created by `open_session_file`."""

    def __init__(self, path: Path, content: _Content, chosen_id: str, *, is_replaced: bool = False) -> None:
        self._path = path
        self._content = content
        self._chosen_id = chosen_id
        self._is_write_failing = False
        self.is_replaced = is_replaced

    @property
    def client_id(self) -> str:
        """The id to connect with: the one of the configuration, else the one of the file."""
        return self._chosen_id or self._content.client_id

    @property
    def has_former_id(self) -> bool:
        """Whether the id is the earlier default, which can be guessed."""
        return not self._chosen_id and self._content.client_id == make_public_name()

    @property
    def session(self) -> KnownSession | None:
        """The session as it was last seen."""
        return self._content.session

    def renew_client_id(self) -> None:
        """Use a new id from now on."""
        self._save(msgspec.structs.replace(self._content, client_id=_make_id()))

    def note_session(self, session: KnownSession) -> None:
        """Remember a session. A failure to write is logged: guestd then judges a missing session by what it had."""
        self._save(msgspec.structs.replace(self._content, session=session))

    def note_seen(self, now: float) -> None:
        """Remember when the session was last used."""
        if self.session is not None:
            self.note_session(msgspec.structs.replace(self.session, seen_at=now))

    def _save(self, content: _Content) -> None:
        self._content = content
        try:
            _write(self._path, content)
        except OSError as exc:
            if not self._is_write_failing:
                log.warning(
                    "file of the broker session cannot be written, a session that is lost may not be noticed; "
                    "free disk space or let guestd write it",
                    file=str(self._path), error=str(exc),
                )  # fmt: skip
            self._is_write_failing = True
        else:
            self._is_write_failing = False


def open_session_file(directory: Path, chosen_id: str, *, is_upgrade: bool) -> SessionFile:
    """Read the file or create it. `is_upgrade`: an earlier guestd has used the directory.

    A damaged file is kept under another name and replaced. Raises ConfigError if it cannot be read or created.
    """
    path = directory / FILE
    is_replaced = False
    try:
        try:
            return SessionFile(path, _decode(path.read_bytes()), chosen_id)
        except FileNotFoundError:
            content = _Content(client_id=make_public_name() if is_upgrade else _make_id())
        except _UNREADABLE as exc:
            content, is_replaced = _Content(client_id=_make_id()), True
            _keep_damaged(path, exc)
        _write(path, content)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}: let guestd's user read and write it") from exc
    return SessionFile(path, content, chosen_id, is_replaced=is_replaced)


def read_known_session(directory: Path) -> KnownSession | None:
    """The session that a guestd with this directory has had; None if there was none. ConfigError: it cannot be read."""
    path = directory / FILE
    try:
        return _decode(path.read_bytes()).session
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except _UNREADABLE as exc:
        raise ConfigError(f"{path} is damaged: {exc}") from exc


def _keep_damaged(path: Path, exc: Exception) -> None:
    kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    path.replace(kept)
    log.error(
        "file of the broker session is damaged, guestd uses a new client id; what the broker has queued under the "
        "earlier one is not received: the broker's log has that id, set it as mqtt.client_id to receive it",
        file=str(kept), error=str(exc),
    )  # fmt: skip


def _make_id() -> str:
    return f"guestd-{secrets.token_hex(_ID_BYTES)}"


def _decode(content: bytes) -> _Content:
    """Raises one of _UNREADABLE."""
    decoded = msgspec.json.decode(content.decode(), type=_Content)
    if not decoded.client_id:
        raise msgspec.ValidationError("client_id is empty")
    return decoded


def _write(path: Path, content: _Content) -> None:
    """Replace the file in one step, readable by guestd only. Raises OSError."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    try:
        with open(new, "xb", opener=_open_private) as file:
            _write_durably(file, msgspec.json.encode(content))
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    new.replace(path)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_durably(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
