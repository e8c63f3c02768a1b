"""What guestd remembers of its reports to the store, beside the spool: so it notices a store that went back.

A store that was restored from a backup, or a standby that had not received everything, has fewer reports of this host.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

log = structlog.get_logger()

FILE = "vm-reports.json"


class _Content(Struct, frozen=True, kw_only=True):
    host: str
    uri: str
    reports: int


class Reported:
    """How often this host has reported to its store: `reports`, 0 if that is not known."""

    def __init__(self, path: Path | None, *, host: str, uri: str) -> None:
        """Read the file; `path` None: none is kept. What another host name or URI has reported does not count."""
        self._path, self._host, self._uri = path, host, uri
        self._is_write_failing = False
        self.reports = 0 if path is None else _read(path, host, uri)

    async def note(self, reports: int) -> None:
        """Remember a report that the store has taken. A failure to write is logged once."""
        self.reports = reports
        if self._path is None:
            return
        content = msgspec.json.encode(_Content(host=self._host, uri=self._uri, reports=reports))
        try:
            await asyncio.to_thread(_write, self._path, content)
        except OSError as exc:
            if not self._is_write_failing:
                log.warning(
                    "file of the reports cannot be written, a restore of the store while guestd is stopped may not be "
                    "noticed; free disk space or let guestd write it",
                    file=str(self._path), error=str(exc),
                )  # fmt: skip
            self._is_write_failing = True
        else:
            self._is_write_failing = False


def _read(path: Path, host: str, uri: str) -> int:
    try:
        content = msgspec.json.decode(path.read_text(), type=_Content)
    except FileNotFoundError:
        return 0
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as exc:
        log.warning(
            "file of the reports cannot be read, a restore of the store since is not noticed; it is written again",
            file=str(path), error=str(exc),
        )  # fmt: skip
        return 0
    return content.reports if (content.host, content.uri) == (host, uri) else 0


def _write(path: Path, content: bytes) -> None:
    """Replace the file in one step. After a power failure it may be older, and is never newer, than the store."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)
