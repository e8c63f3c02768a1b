"""Which programs are used on this machine and for how long; the figures survive a restart of the agent.

An application is an executable that a process runs. Its minutes are the time between samples in which at least one
process ran it; a start is a process that was created since the last sample.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import msgspec

from guestd.agent.payload import Application, Process, rfc3339
from guestd.agent.usage_state import MOST_SECONDS, MOST_STARTS, UsageRecord, UsageState

# The longest unused are forgotten first; a machine that runs more different programs than this is a build farm.
MOST_APPLICATIONS = 500
# Unix seconds, the year 2020: a clock that is before it is not set yet.
EARLIEST_SECONDS = 1_577_836_800.0


class ApplicationWatch:
    """Adds up the use of applications from one sample to the next."""

    def __init__(self, usage: UsageState) -> None:
        self.usage = usage
        # The state is saved by another thread than the one that takes samples.
        self._lock = threading.Lock()

    def observe(
        self, processes: list[Process], programs: Mapping[str, bool], now_s: float, elapsed_seconds: float
    ) -> list[Application]:
        """Account for the processes that run, seen just after `now_s` (unix seconds); return all applications.

        `programs` are those that the kernel named, with whether their file is there. `elapsed_seconds` is the time
        since the last sample of this run, 0 on the first. Applications that run come first, then those that ran most
        recently. While the clock is not set, minutes are counted, and neither starts nor times.
        """
        is_set = now_s >= EARLIEST_SECONDS
        running: dict[str, list[Process]] = {}
        for process in processes:
            if process.executable_path:
                running.setdefault(process.executable_path, []).append(process)
        with self._lock:
            for executable, its_processes in running.items():
                record = self.usage.records.setdefault(executable, UsageRecord())
                starts = sum(is_set and self._is_new(process, now_s) for process in its_processes)
                record.seconds = min(record.seconds + elapsed_seconds, MOST_SECONDS)
                record.starts = min(record.starts + starts, MOST_STARTS)
                record.last_access = now_s if is_set else record.last_access
                record.is_file = programs.get(executable, record.is_file)
            self.usage.observed_at = now_s if is_set else self.usage.observed_at
            latest = sorted(self.usage.records.items(), key=lambda known: -known[1].last_access)
            self.usage.records = dict(latest[:MOST_APPLICATIONS])
        return [_application(path, record, path in running) for path, record in self.usage.records.items()]

    def list_files(self) -> set[str]:
        """The applications whose file may be examined."""
        with self._lock:
            return {executable for executable, record in self.usage.records.items() if record.is_file}

    def encode(self) -> bytes:
        """The usage as the state file has it."""
        with self._lock:
            return msgspec.json.encode(self.usage)

    def _is_new(self, process: Process, now_s: float) -> bool:
        # Start times are whole seconds: the second of a sample belongs to the next one, so that none counts twice.
        return process.start_time is not None and int(self.usage.observed_at) <= process.start_time < int(now_s)


def _application(executable: str, record: UsageRecord, is_active: bool) -> Application:
    return Application(
        exe_path=executable,
        name=executable.replace("\\", "/").rpartition("/")[2],
        access_count=record.starts,
        usage_minutes=int(record.seconds // 60),
        last_access=rfc3339(record.last_access),
        is_active=is_active,
    )
