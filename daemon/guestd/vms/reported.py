"""What guestd remembers of its reports to the store, beside the spool: so it notices a store that went back.

A store that was restored from a backup, or a standby that had not received everything, has fewer reports of this host.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import msgspec
import structlog
from msgspec import Struct

log = structlog.get_logger()

FILE = "vm-reports.json"


class _Content(Struct, frozen=True, kw_only=True):
    host: str
    uri: str
    host_id: UUID
    reports: int


class Reported:
    """How often this host has reported to its store: `reports`, and the id of its row there; 0 and None: not known."""

    def __init__(self, path: Path | None, *, host: str, uri: str) -> None:
        """Read the file; `path` None: none is kept. What another host name or URI has reported does not count."""
        self._path, self._host, self._uri = path, host, uri
        self._is_write_failing = False
        self._lock = asyncio.Lock()
        self._written = None if path is None else _read(path, host, uri)
        self.host_id = None if self._written is None else self._written.host_id
        self.reports = 0 if self._written is None else self._written.reports

    async def note(self, host_id: UUID, reports: int) -> None:
        """Remember a report that the store has taken of this row. A failure to write is logged once."""
        self.reports = max(reports, self.reports) if host_id == self.host_id else reports
        self.host_id = host_id
        if self._path is None:
            return
        # Actions run at the same time: each returns when the file has its report, or a later one.
        async with self._lock:
            content = _Content(host=self._host, uri=self._uri, host_id=self.host_id, reports=self.reports)
            if content != self._written:
                await self._write(self._path, content)

    async def _write(self, path: Path, content: _Content) -> None:
        try:
            await asyncio.to_thread(_write, path, msgspec.json.encode(content))
        except OSError as exc:
            if not self._is_write_failing:
                log.warning(
                    "file of the reports cannot be written, a restore of the store while guestd is stopped may not be "
                    "noticed; free disk space or let guestd write it",
                    file=str(path), error=str(exc),
                )  # fmt: skip
            self._is_write_failing = True
        else:
            self._is_write_failing = False
            self._written = content


def _read(path: Path, host: str, uri: str) -> _Content | None:
    try:
        content = msgspec.json.decode(path.read_text(), type=_Content)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as exc:
        log.warning(
            "file of the reports cannot be read, a restore of the store since is not noticed; it is written again",
            file=str(path), error=str(exc),
        )  # fmt: skip
        return None
    return content if (content.host, content.uri) == (host, uri) else None


def _write(path: Path, content: bytes) -> None:
    """Replace the file in one step. After a power failure it may be older, and is never newer, than the store."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)
