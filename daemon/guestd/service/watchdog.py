"""What guestd and its supervisor tell each other: how things stand, that it moves, that it was reloaded."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import structlog

from guestd.core.config import Settings
from guestd.core.errors import ConfigError
from guestd.ingest.writer import Writer
from guestd.service import systemd
from guestd.service.progress import MonitoredPart, ProgressMonitor
from guestd.service.reload import merge_reloadable
from guestd.spool.queue import Spool

log = structlog.get_logger()

STATUS_SECONDS = 5.0
# A statement is given up after 60 s, a connection to several hosts takes seconds each, and a retry waits some more.
STUCK_SECONDS = 120.0
# Of the supervisor's patience, so that one late turn does not end us.
PINGS_PER_LIMIT = 4


async def report_status(words: Callable[[], str]) -> None:
    """Tell systemd in words how things stand, for ever."""
    while True:
        systemd.notify(f"STATUS={words()}")
        await asyncio.sleep(STATUS_SECONDS)


class Watchdog:
    """Tells systemd that spool and writer move; says nothing any more when one of them is stuck."""

    def __init__(self, spool: Spool, writer: Writer) -> None:
        parts = {
            "spool": MonitoredPart(lambda: spool.is_writing, lambda: spool.attempts),
            # Its steps in the spool count too: a full disk is retried, and a restart would mend nothing.
            "writer": MonitoredPart(lambda: not writer.is_idle, lambda: writer.steps + spool.attempts),
        }
        self._progress = ProgressMonitor(parts, limit_seconds=STUCK_SECONDS)
        self.problem: str | None = None

    async def run(self) -> None:
        """Ping as often as systemd wants it; where it wants none, only look."""
        limit_seconds = systemd.watchdog_seconds()
        while True:
            self._look(limit_seconds is not None)
            await asyncio.sleep((limit_seconds or STUCK_SECONDS) / PINGS_PER_LIMIT)

    def _look(self, is_watched: bool) -> None:
        stuck = self._progress.find_stuck(time.monotonic())
        if stuck and self.problem is None:
            log.error("it does not move any more, and the watchdog is not fed", parts=stuck, seconds=STUCK_SECONDS)
        self.problem = f"{', '.join(stuck)}: no step for {STUCK_SECONDS:g} s" if stuck else None
        if is_watched and not stuck:
            systemd.notify("WATCHDOG=1")


class ConfigReloader:
    """SIGHUP: the configuration is read again, and it is said what came of it. `settings` are those in force."""

    def __init__(
        self, settings: Settings, *, reread: Callable[[], Settings], applied: Callable[[Settings], None]
    ) -> None:
        self.settings = settings
        self._reread = reread
        self._applied = applied
        self._wanted = asyncio.Event()
        # Before READY: a signal that nobody waits for would end us.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._wanted.set)

    async def run(self) -> None:
        """Wait for SIGHUP, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            await self._reload()
            systemd.notify("READY=1")

    async def _reload(self) -> None:
        try:
            read = await asyncio.to_thread(self._reread)
        except ConfigError as exc:
            log.error("the configuration was not reloaded, the old one stays in force", error=str(exc))
            return
        found = merge_reloadable(self.settings, read)
        self.settings = found.settings
        self._applied(found.settings)
        log.info("the configuration was reloaded", in_force=found.applied)
        if found.needs_restart:
            log.warning("these changes need a restart", keys=found.needs_restart)
