"""Derived data, refreshed once a minute: roll-ups, listening ports, running machines without data, store alarms.

Not part of the batch that stores the samples: a port rarely changes, and one guest's ports must not delay the samples
of the others.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import structlog

from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry, warn_once
from guestd.store.connection import BULK_SECONDS, ROW_SECONDS, connection_to, set_lock_timeout, store_deadline
from guestd.store.locks import IndependentSteps
from guestd.telemetry.exposition import Family
from guestd.telemetry.registry import MaintenanceMetrics, VmMetrics
from gueststore.alarms import Alarm, read_alarms
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query

log = structlog.get_logger()

REFRESH_SECONDS = 60.0
AGENTS_HELP = "Machines of this host, by state of the agent's channel and by dialect of the agent."
ALARMS_HELP = "Failed health checks of the store, by kind; `gueststore check` prints them."
# Longer than retention waits for its locks (guestd.store.maintenance), because a roll-up may wait behind it.
LOCK_SECONDS = 5.0
# What the checks find develops over hours, except drift, which maintenance counts as well.
HEALTH_CHECK_SECONDS = 3600.0
# Function, items per transaction (a second or two of work), items per refresh. Deleting a machine invalidates years of
# the fleet's hours: these are recomputed over many refreshes, the newest first.
ROLL_UPS = (
    ("rollups/roll_up_minutes", 5_000, math.inf),
    ("rollups/roll_up_hours", 500, math.inf),
    ("rollups/roll_up_fleet", 12, 240),
)


class RollupRefresher:
    """Refreshes derived data, and reports on one host's machines. `host_name` and `uri` as in Host."""

    def __init__(
        self, dsn: str, *, host_name: str, uri: str, metrics: VmMetrics, maintenance: MaintenanceMetrics
    ) -> None:
        self._dsn = dsn
        self._steps = IndependentSteps(dsn, maintenance)
        self._host = {"name": host_name, "uri": uri}
        self._metrics = metrics
        self._without_data_since: Mapping[str, float] = {}
        self._agents: Sequence[tuple[str | None, str | None, int]] = ()
        self._alarms: Counter[str] = Counter()
        self._health_checked_at: float | None = None

    def build_families(self) -> list[Family]:
        """Build the metrics: machines without data, agents by channel and dialect, failed health checks."""
        samples: list[tuple[tuple[str, ...], float]] = [
            ((name,), since) for name, since in self._without_data_since.items()
        ]
        text = "Start of the gap in the data of a running machine, by domain."
        counted: list[tuple[tuple[str, ...], float]] = [
            ((channel or "unknown", dialect or "none"), count) for channel, dialect, count in self._agents
        ]
        alarms: list[tuple[tuple[str, ...], float]] = [((kind,), count) for kind, count in self._alarms.items()]
        return [
            Family("guestd_machine_without_data_since_timestamp_seconds", text, False, ("domain",), samples),
            Family("guestd_machine_agents", AGENTS_HELP, False, ("channel", "dialect"), counted),
            Family("guestd_store_alarms", ALARMS_HELP, False, ("kind",), alarms),
        ]

    @property
    def problems(self) -> list[str]:
        """The steps that failed in the last refresh, a sentence each."""
        return self._steps.problems

    async def run(self) -> None:
        """Refresh once a minute; never returns."""

        async def refresh_periodically() -> None:
            while True:
                await self.refresh()
                await asyncio.sleep(REFRESH_SECONDS)

        await run_with_retry(
            refresh_periodically,
            expected=(StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=60),
            on_failure=warn_once("refresh of roll-ups failed, retrying"),
        )

    async def refresh(self) -> None:
        """Refresh ports and roll-ups for all hosts, unless another guestd is doing it, and this host's machines.

        A step that fails, or waits for another session's lock, does not stop the others. StoreUnavailable when the
        connection is lost.
        """
        async with connection_to(self._dsn) as connection:
            await set_lock_timeout(connection, LOCK_SECONDS)
            async with self._steps.step("ports", connection):
                await _merge_ports(connection)
            # Before the roll-ups: it reports roll-ups that fail.
            async with self._steps.step("health", connection):
                await self._check_health()
            async with self._steps.step("rollups", connection):
                await _roll_up(connection)
            async with self._steps.step("machines", connection):
                await self._read_machines(connection)

    async def _read_machines(self, connection: psycopg.AsyncConnection[Any]) -> None:
        async with store_deadline(ROW_SECONDS):
            cursor = await connection.execute(query("maintenance/read_machines_without_data"), self._host)
            self._without_data_since = dict(await cursor.fetchall())
            cursor = await connection.execute(query("maintenance/read_agent_counts"), self._host)
            self._agents = await cursor.fetchall()
        self._metrics.machines_without_data.set(len(self._without_data_since))

    async def _check_health(self) -> None:
        """Run the checks of `gueststore check`, at the start and every hour."""
        now = asyncio.get_running_loop().time()
        if self._health_checked_at is not None and now < self._health_checked_at + HEALTH_CHECK_SECONDS:
            return
        async with store_deadline(BULK_SECONDS):
            found = await asyncio.to_thread(_read_alarms, self._dsn)
        self._health_checked_at = now
        self._alarms = Counter(alarm.kind for alarm in found)
        for alarm in found:
            log.warning("store health check failed", kind=alarm.kind, problem=alarm.sentence)


def _read_alarms(dsn: str) -> list[Alarm]:
    try:
        return read_alarms(dsn)
    except (StoreError, ConfigurationError) as exc:
        raise StoreUnavailable(str(exc)) from exc


async def _merge_ports(connection: psycopg.AsyncConnection[Any]) -> None:
    async with store_deadline(BULK_SECONDS), connection.transaction():
        cursor = await connection.execute(query("maintenance/lock_maintenance"))
        if await cursor.fetchone() == (True,):
            await connection.execute(query("maintenance/merge_ports"))
            await connection.execute(query("maintenance/delete_old_reconcile_events"))


async def _roll_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Roll up all closed periods: minutes before hours, machines before the fleet."""
    for function, per_transaction, limit in ROLL_UPS:
        done = 0
        while done < limit:
            async with store_deadline(BULK_SECONDS):
                cursor = await connection.execute(query(function), {"most": per_transaction})
                ((rolled_up,),) = await cursor.fetchall()
            if rolled_up == 0:
                break
            done += rolled_up
