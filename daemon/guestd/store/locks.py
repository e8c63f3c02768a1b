"""Locks that other sessions hold: a step of background work gives up, names the session, and is tried again later.

A session that waits for an exclusive lock blocks every later query on the same table, and a reader such as pg_dump
holds its locks for hours: so the steps wait for seconds, and the next steps do not depend on them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import structlog

from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.store.connection import ROW_SECONDS, LockHeld, connection_to, store_deadline
from guestd.telemetry.registry import MaintenanceMetrics
from gueststore.queries import query

log = structlog.get_logger()

# A step that takes longer than this may be waiting; the sessions are read this often from then on. Shorter than every
# lock_timeout of a step.
FIRST_LOOK_SECONDS = 1.0
LOOK_SECONDS = 0.5
LOG_SECONDS = 3600.0


class DelayedSteps:
    """The steps that wait for another session's lock: each is logged, when that begins, every hour and when it ends."""

    def __init__(self, dsn: str, metrics: MaintenanceMetrics) -> None:
        self._dsn = dsn
        self._metrics = metrics
        self._logged_at: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Whether the last attempt of any step failed for a lock."""
        return bool(self._logged_at)

    @asynccontextmanager
    async def step(self, name: str, connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
        """Run one step; a lock that another session holds ends the block without an exception.

        Whatever else the step raises is raised: that is no delay by a lock.
        """
        is_delayed = False
        try:
            async with name_blockers(self._dsn, connection):
                yield
        except LockHeld as exc:
            is_delayed = True
            self._metrics.delayed.labels(name).set(1)
            now = time.monotonic()
            if now >= self._logged_at.get(name, float("-inf")) + LOG_SECONDS:
                self._logged_at[name] = now
                log.warning("store maintenance delayed by a lock, retrying", step=name, error=str(exc))
        else:
            if name in self._logged_at:
                log.info("store maintenance no longer delayed", step=name)
        finally:
            if not is_delayed:
                self._metrics.delayed.labels(name).set(0)
                self._logged_at.pop(name, None)


@asynccontextmanager
async def name_blockers(dsn: str, connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """A LockHeld of the block names the sessions that the connection waited for."""
    found: list[str] = []
    watching = asyncio.create_task(_watch_blockers(dsn, connection.info.backend_pid, found))
    try:
        yield
    except LockHeld as exc:
        if not found:
            raise
        raise LockHeld(f"the lock is held by {', '.join(found)}") from exc
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _watch_blockers(dsn: str, pid: int, found: list[str]) -> None:
    """Keep in `found` the sessions that the last wait of a session's was for, until cancelled."""
    await asyncio.sleep(FIRST_LOOK_SECONDS)
    try:
        async with connection_to(dsn) as connection:
            while True:
                found[:] = await read_blockers(connection, pid) or found
                await asyncio.sleep(LOOK_SECONDS)
    except (StoreUnavailable, RowsRejected):
        # The delay is reported without them.
        return


async def read_blockers(connection: psycopg.AsyncConnection[Any], pid: int | None) -> list[str]:
    """The sessions for which this process waits; for None any session with the application_name of this connection."""
    async with store_deadline(ROW_SECONDS):
        name = connection.info.parameter_status("application_name")
        cursor = await connection.execute(query("session/read_blockers"), {"pid": pid, "application_name": name})
        return [text for (text,) in await cursor.fetchall()]
