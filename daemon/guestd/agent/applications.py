"""Which programs are used on this machine and for how long; the figures survive a restart of the agent.

An application is an executable that a process runs. Its minutes are the time between samples in which at least one
process ran it; a start is a process that was created since the last sample.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from guestd.agent import desktop
from guestd.agent.payload import Application, Process

# The longest unused are forgotten first; a machine that runs more different programs than this is a build farm.
MOST_APPLICATIONS = 500

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


class UsageRecord(msgspec.Struct):
    """The use of one executable; `last_access` in unix seconds."""

    seconds: float = 0.0
    starts: int = 0
    last_access: float = 0.0


class UsageState(msgspec.Struct):
    """All records by executable, and the time of the last sample (unix seconds, 0 before the first).

    This is the format of the agent's state file: the names in it stay.
    """

    records: dict[str, UsageRecord] = {}
    observed_at: float = msgspec.field(default=0.0, name="looked_at")


class ApplicationWatch:
    """Adds up the use of applications from one sample to the next."""

    def __init__(self, usage: UsageState) -> None:
        self.usage = usage
        self._shown_icons: set[str] = set()

    def observe(self, processes: list[Process], now_s: float, elapsed_seconds: float) -> list[Application]:
        """Account for the processes that run, seen just after `now_s` (unix seconds); return all applications.

        `elapsed_seconds` is the time since the last sample of this run, 0 on the first. Applications that run come
        first, then those that ran most recently.
        """
        running: dict[str, list[Process]] = {}
        for process in processes:
            if process.executable_path:
                running.setdefault(process.executable_path, []).append(process)
        for executable, its_processes in running.items():
            record = self.usage.records.setdefault(executable, UsageRecord())
            record.seconds += elapsed_seconds
            record.starts += sum(self._is_new(process, now_s) for process in its_processes)
            record.last_access = now_s
        self.usage.observed_at = now_s
        latest = sorted(self.usage.records.items(), key=lambda known: -known[1].last_access)
        self.usage.records = dict(latest[:MOST_APPLICATIONS])
        return [self._application(path, record, path in running) for path, record in self.usage.records.items()]

    def _is_new(self, process: Process, now_s: float) -> bool:
        # Start times are whole seconds: the second of a sample belongs to the next one, so that none counts twice.
        return process.start_time is not None and int(self.usage.observed_at) <= process.start_time < int(now_s)

    def _application(self, executable: str, record: UsageRecord, is_active: bool) -> Application:
        entry = desktop.find_entry(executable)
        application = Application(
            exe_path=executable,
            name=entry.name if entry else _file_name(executable),
            access_count=record.starts,
            usage_minutes=int(record.seconds // 60),
            last_access=_rfc3339(record.last_access),
            is_active=is_active,
            description=entry.description if entry else None,
        )
        try:
            known = Path(executable).stat()
            application.file_size, application.last_modified = known.st_size, _rfc3339(known.st_mtime)
        except OSError:
            pass  # removed or replaced while it runs
        if entry and entry.icon and executable not in self._shown_icons:
            self._shown_icons.add(executable)
            application.icon_base64 = desktop.icon_base64(entry.icon)
            application.icon_format = "png" if application.icon_base64 else None
        return application


def read_usage_state(path: Path | None) -> UsageState:
    """The usage state of an earlier run; an empty one when there is no file or it cannot be read."""
    if path is None:
        return UsageState()
    try:
        return msgspec.json.decode(path.read_bytes(), type=UsageState)
    except FileNotFoundError:
        return UsageState()
    except (OSError, msgspec.DecodeError) as exc:
        _log.warning("state file unreadable: application minutes start from zero", file=str(path), error=str(exc))
        return UsageState()


def write_usage_state(path: Path, usage: UsageState) -> None:
    """Replace the file in one step, so that a crash leaves the old one or the new one. Raises OSError."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(msgspec.json.encode(usage))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _file_name(executable: str) -> str:
    return executable.replace("\\", "/").rpartition("/")[2]


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
