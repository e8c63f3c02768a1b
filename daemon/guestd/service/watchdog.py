"""The systemd watchdog: pings while spool and writer make progress, and withholds the ping when one is stuck."""

from __future__ import annotations

import asyncio
import time

import structlog

from guestd.core.machines import MachineRegistry
from guestd.ingest.writer import Writer
from guestd.service import systemd
from guestd.service.progress import MonitoredPart, ProgressMonitor
from guestd.spool.queue import Spool

log = structlog.get_logger()

# A statement times out after 60 s, connecting to several hosts takes seconds each, and a retry waits in between.
STUCK_SECONDS = 120.0
# One late ping must not make systemd kill guestd.
PINGS_PER_LIMIT = 4


class Watchdog:
    """Pings systemd while spool and writer make progress."""

    def __init__(self, spool: Spool, writer: Writer, machine_registry: MachineRegistry) -> None:
        def has_writer_work() -> bool:
            # Without the machines' settings no row is made: then the registry is what fails, and a restart is no help.
            return not writer.is_idle and machine_registry.loaded.is_set()

        parts = {
            "spool": MonitoredPart(lambda: spool.is_writing, lambda: spool.attempts),
            # The spool's steps count too: on a full disk both retry, and a restart would not help.
            "writer": MonitoredPart(has_writer_work, lambda: writer.steps + spool.attempts),
        }
        self._monitor = ProgressMonitor(parts, limit_seconds=STUCK_SECONDS)
        self.problem: str | None = None

    async def run(self) -> None:
        """Check progress and ping as often as systemd requires; without systemd only check. Never returns."""
        limit_seconds = systemd.get_watchdog_seconds()
        while True:
            stuck = self._find_stuck()
            if limit_seconds is not None and not stuck:
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep((limit_seconds or STUCK_SECONDS) / PINGS_PER_LIMIT)

    def _find_stuck(self) -> list[str]:
        stuck = self._monitor.find_stuck(time.monotonic())
        if stuck and self.problem is None:
            log.error(f"no progress for {STUCK_SECONDS:g} s; watchdog ping withheld", parts=stuck)
        self.problem = f"{', '.join(stuck)}: no progress for {STUCK_SECONDS:g} s" if stuck else None
        return stuck
