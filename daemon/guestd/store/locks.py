"""Steps of background work, each independent of the others: with a connection and limits of its own.

A step that waits for another session's lock gives up, names the session, and is tried again later. A session that
waits for an exclusive lock blocks every later query on the same table, and a reader such as pg_dump holds its locks for
hours: so the steps wait for seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import structlog

from guestd.core.bugs import BugLog, describe_error
from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.store.connection import ROW_SECONDS, LockHeld, connection_to, set_timeouts, store_deadline
from guestd.telemetry.registry import MaintenanceMetrics
from gueststore.queries import query

log = structlog.get_logger()

# A step that takes longer than this may be waiting; the sessions are read this often from then on. Shorter than every
# lock_timeout of a step.
FIRST_LOOK_SECONDS = 1.0
LOOK_SECONDS = 0.5
LOG_SECONDS = 3600.0


class IndependentSteps:
    """The steps of background work: one that fails or is slow neither stops nor delays the others.

    A step that waits for another session's lock is logged when that begins, every hour and when it ends. Any other
    failure is logged, counted and listed in `problems` until the step succeeds.
    """

    def __init__(self, dsn: str, metrics: MaintenanceMetrics) -> None:
        self._dsn = dsn
        self._metrics = metrics
        self._logged_at: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._bugs: defaultdict[str, BugLog] = defaultdict(BugLog)

    @property
    def is_retry_due(self) -> bool:
        """Whether the last attempt of any step failed, for a lock or for another reason."""
        return bool(self._logged_at or self._failures)

    @property
    def problems(self) -> list[str]:
        """The steps whose last attempt failed for another reason than a lock, a sentence each."""
        return [f"store maintenance: {name} failed, retrying: {error}" for name, error in self._failures.items()]

    @asynccontextmanager
    async def connection_of(
        self, name: str, *, lock_seconds: float, statement_seconds: float
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A step with a connection of its own, which waits no longer for a lock or for a statement; else as `step`."""
        async with connection_to(self._dsn) as connection:
            await set_timeouts(connection, lock_seconds=lock_seconds, statement_seconds=statement_seconds)
            async with self.step(name, connection):
                yield connection

    @asynccontextmanager
    async def step(self, name: str, connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
        """Run one step. What it raises ends the block and is not raised again, unless the connection is lost."""
        self._metrics.failures.labels(name)
        try:
            async with name_blockers(self._dsn, connection):
                yield
        except LockHeld as exc:
            self._note_delay(name, exc)
            self._failures.pop(name, None)
        except Exception as exc:
            if connection.closed:
                raise
            self._note_failure(name, exc)
            self._end_delay(name)
        else:
            if name in self._logged_at:
                log.info("store maintenance no longer delayed", step=name)
            if self._failures.pop(name, None) is not None:
                log.info("store maintenance no longer fails", step=name)
            self._end_delay(name)

    def _note_delay(self, name: str, exc: LockHeld) -> None:
        self._metrics.delayed.labels(name).set(1)
        now = time.monotonic()
        if now >= self._logged_at.get(name, float("-inf")) + LOG_SECONDS:
            self._logged_at[name] = now
            log.warning("store maintenance delayed by a lock, retrying", step=name, error=str(exc))

    def _end_delay(self, name: str) -> None:
        self._metrics.delayed.labels(name).set(0)
        self._logged_at.pop(name, None)

    def _note_failure(self, name: str, exc: Exception) -> None:
        self._metrics.failures.labels(name).inc()
        is_expected = isinstance(exc, StoreUnavailable | RowsRejected)
        error = str(exc) if is_expected else describe_error(exc)
        if not is_expected:
            self._bugs[name].error("store maintenance failed, retrying; report the traceback", exc, step=name)
        elif self._failures.get(name) != error:
            log.warning("store maintenance failed, retrying; the other steps are done", step=name, error=error)
        self._failures[name] = error


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
