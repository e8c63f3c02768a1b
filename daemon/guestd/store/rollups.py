"""Derived data, refreshed once a minute: roll-ups, listening ports, running machines without data, store alarms.

Not part of the batch that stores the samples: a port rarely changes, and one guest's ports must not delay the samples
of the others. Nor do the steps wait for each other: each is a task with a connection and limits of its own.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import psycopg
import structlog

from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.tasks import Backoff, TaskFunction, run_with_retry, warn_once
from guestd.store.connection import REPLY_SECONDS, StatementTimeout, choose_reported, set_timeouts, store_deadline
from guestd.store.locks import IndependentSteps
from guestd.telemetry.exposition import Family
from guestd.telemetry.registry import MaintenanceMetrics, VmMetrics
from guestd.wire import limits
from gueststore.alarms import Alarm, read_alarms
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query

log = structlog.get_logger()

Connection = psycopg.AsyncConnection[Any]

REFRESH_SECONDS = 60.0
AGENTS_HELP = "Machines of this host, by state of the agent's channel and by dialect of the agent."
ALARMS_HELP = "Failed health checks of the store, by kind; `gueststore check` prints them."
# Longer than retention waits for its locks (guestd.store.maintenance), because a roll-up may wait behind it.
LOCK_SECONDS = 5.0
# What the checks find develops over hours, except drift, which maintenance counts as well.
HEALTH_CHECK_SECONDS = 3600.0
# Of a statement. All ports of a fleet take a second; the roll-ups adapt to it.
STATEMENT_SECONDS = 60.0
CHECK_SECONDS = 300.0
# Of one kind of roll-up before the next kind has its turn: what one guest makes expensive does not hold up the rest.
TURN_SECONDS = 60.0
# Faster than this, a transaction may have more items; slower than STATEMENT_SECONDS, it has fewer. A single one, say
# an hour of a machine at its limits, may take longer.
FAST_SECONDS = 5.0
SINGLE_ITEM_SECONDS = 600.0
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
        self._independent = IndependentSteps(dsn, maintenance)
        self._host = {"name": host_name, "uri": uri}
        self._metrics = metrics
        self._without_data_since: Mapping[str, float] = {}
        self._agents: Sequence[tuple[str | None, str | None, int]] = ()
        self._alarms: Counter[str] = Counter()
        self._health_checked_at: float | None = None
        self._maintenance = maintenance
        self._roll_ups = RollUps(ROLL_UPS)
        self._steps: dict[str, Callable[[], Awaitable[None]]] = {
            "ports": self._merge_ports,
            # Not a part of the roll-ups: it reports roll-ups that fail.
            "health": self._check_health,
            "rollups": self._roll_up,
            "machines": self._read_machines,
        }

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
        """The steps whose last attempt failed, a sentence each."""
        return self._independent.problems

    def get_tasks(self) -> dict[str, TaskFunction]:
        """Get the background tasks by name: each runs a step once a minute and never returns."""
        return {f"store-{name}": partial(self._run_step, name) for name in self._steps}

    async def refresh(self) -> None:
        """Refresh ports and roll-ups for all hosts, unless another guestd is doing it, and this host's machines.

        A step that fails, or waits for another session's lock, does not stop the others. StoreUnavailable at the end
        when a connection is lost.
        """
        for lost in await asyncio.gather(*(step() for step in self._steps.values()), return_exceptions=True):
            if lost is not None:
                raise lost

    async def _run_step(self, name: str) -> None:
        async def run_periodically() -> None:
            while True:
                await self._steps[name]()
                await asyncio.sleep(REFRESH_SECONDS)

        await run_with_retry(
            run_periodically,
            expected=(StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=REFRESH_SECONDS),
            on_failure=warn_once("refresh of derived data failed, retrying", step=name),
        )

    def _connection_of(self, name: str) -> AbstractAsyncContextManager[Connection]:
        return self._independent.connection_of(name, lock_seconds=LOCK_SECONDS, statement_seconds=STATEMENT_SECONDS)

    async def _merge_ports(self) -> None:
        most = {"most": limits.PORTS}
        async with self._connection_of("ports") as connection, connection.transaction():
            if await _execute(connection, "maintenance/lock_maintenance") == [(True,)]:
                ((left_out,),) = await _execute(connection, "maintenance/merge_ports", most)
                self._maintenance.ports_left_out.set(left_out)
                await _execute(connection, "maintenance/delete_excess_ports", most)
                await _execute(connection, "maintenance/delete_old_reconcile_events")

    async def _roll_up(self) -> None:
        async with self._connection_of("rollups") as connection:
            await self._roll_ups.run(connection)

    async def _read_machines(self) -> None:
        async with self._connection_of("machines") as connection:
            silent = await _execute(connection, "maintenance/read_machines_without_data", self._host)
            self._without_data_since = dict(silent)
            self._agents = await _execute(connection, "maintenance/read_agent_counts", self._host)
        self._metrics.machines_without_data.set(len(self._without_data_since))

    async def _check_health(self) -> None:
        """Run the checks of `gueststore check`, at the start and every hour."""
        now = asyncio.get_running_loop().time()
        if self._health_checked_at is not None and now < self._health_checked_at + HEALTH_CHECK_SECONDS:
            return
        async with self._connection_of("health"), store_deadline(CHECK_SECONDS):
            await self._read_alarms(now)

    async def _read_alarms(self, now: float) -> None:
        found = await asyncio.to_thread(_read_alarms, self._dsn)
        self._health_checked_at = now
        self._alarms = Counter(alarm.kind for alarm in found)
        for alarm in found:
            log.warning("store health check failed", kind=alarm.kind, problem=alarm.sentence)


class RollUps:
    """Rolls up all closed periods: minutes before hours, machines before the fleet. `kinds` as in ROLL_UPS.

    The items of a transaction become fewer when one took longer than its limit, and more again when they are fast.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[str, int, float]],
        *,
        turn_seconds: float = TURN_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
    ) -> None:
        self._kinds = kinds
        self._statement_seconds = statement_seconds
        self._turn_seconds = turn_seconds
        self._per_transaction = {function: most for function, most, _ in kinds}

    async def run(self, connection: Connection) -> None:
        """Give every kind a turn, also when another one fails; what is left waits for the next run.

        A period that the store rejects is passed over by the functions; RowsRejected at the end then names it.
        """
        failure: Exception | None = None
        for function, most, limit in self._kinds:
            ends_at, done = time.monotonic() + self._turn_seconds, 0
            try:
                while done < limit and time.monotonic() < ends_at:
                    rolled_up = await self._run_transaction(connection, function, most)
                    if rolled_up == 0:
                        break
                    done += rolled_up
            except (StoreUnavailable, RowsRejected) as exc:
                if connection.closed:
                    raise
                failure = choose_reported(failure, exc)
        failed = await _execute(connection, "rollups/read_failed")
        for number, unit, bucket, machine_id, error in failed:
            failure = failure or RowsRejected(
                f"{number} periods could not be rolled up and are tried again after an hour, the newest is the {unit} "
                f"of {bucket:%Y-%m-%d %H:%M} of machine {machine_id}: {error}"
            )
        if failure is not None:
            raise failure

    async def _run_transaction(self, connection: Connection, function: str, most: int) -> int:
        """The number of items rolled up. StatementTimeout when a single one took too long."""
        items, began = self._per_transaction[function], time.monotonic()
        limit_seconds = self._statement_seconds if items > 1 else SINGLE_ITEM_SECONDS
        await set_timeouts(connection, lock_seconds=LOCK_SECONDS, statement_seconds=limit_seconds)
        try:
            ((rolled_up,),) = await _execute(connection, function, {"most": items}, limit_seconds)
        except StatementTimeout:
            if items == 1:
                raise
            self._per_transaction[function] = items // 8 or 1
            log.warning("roll-up took longer than its limit, retrying with fewer periods", function=function)
            return await self._run_transaction(connection, function, most)
        if time.monotonic() - began < FAST_SECONDS:
            self._per_transaction[function] = min(most, 2 * items)
        return int(rolled_up)


async def _execute(
    connection: Connection,
    name: str,
    parameters: Mapping[str, object] | None = None,
    limit_seconds: float = STATEMENT_SECONDS,
) -> list[tuple[Any, ...]]:
    async with store_deadline(limit_seconds + REPLY_SECONDS):
        cursor = await connection.execute(query(name), parameters)
        return await cursor.fetchall() if cursor.description else []


def _read_alarms(dsn: str) -> list[Alarm]:
    try:
        return read_alarms(dsn)
    except (StoreError, ConfigurationError) as exc:
        raise StoreUnavailable(str(exc)) from exc
