"""What is derived from stored samples once a minute: roll-ups, listening ports, machines that do not report.

Not in the batch that stores them: a port is not news every few seconds, and a guest's ports must not slow the others'
samples down.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
import structlog

from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry
from guestd.store.connection import connection_to, sorted_errors
from guestd.telemetry.domains import Family
from gueststore.alarms import Alarm, read_alarms
from gueststore.errors import ConfigurationError, StoreError
from gueststore.queries import query

log = structlog.get_logger()

UPKEEP_SECONDS = 60.0
AGENTS_HELP = "Machines of this host, by whether the agent's port is there and open, and by what the agent speaks."
ALARMS_HELP = "What is wrong with the store, by kind; `gueststore check` says it in words."
# Nothing that is looked for comes within minutes, save drift, which maintenance counts too.
LOOKED_OVER_SECONDS = 3600.0
# What is rolled up, how many in a transaction (a second or two of work), and how many in a turn. A machine that is
# deleted leaves years of the fleet's hours to be added up anew: those wait for their turns, the newest first.
ROLL_UPS = (
    ("rollups/roll_up_minutes", 5_000, math.inf),
    ("rollups/roll_up_hours", 500, math.inf),
    ("rollups/roll_up_fleet", 12, 240),
)


class RollupRefresher:
    """The machines of one host: who has no data since when, and how many speak what. Names and URI as in Host."""

    def __init__(self, dsn: str, *, host_name: str, uri: str, silent: Callable[[int], None]) -> None:
        self._dsn = dsn
        self._host = {"name": host_name, "uri": uri}
        self._silent = silent
        self._since: Mapping[str, float] = {}
        self._agents: Sequence[tuple[str | None, str | None, int]] = ()
        self._alarms: Counter[str] = Counter()
        self._looked_over_at: float | None = None

    def families(self) -> list[Family]:
        """Who does not report, and what the agents' ports and dialects are, as metrics."""
        samples: list[tuple[tuple[str, ...], float]] = [((name,), since) for name, since in self._since.items()]
        text = "Of machines that run and do not report: since when."
        counted: list[tuple[tuple[str, ...], float]] = [
            ((channel or "unknown", dialect or "none"), count) for channel, dialect, count in self._agents
        ]
        alarms: list[tuple[tuple[str, ...], float]] = [((kind,), count) for kind, count in self._alarms.items()]
        return [
            Family("guestd_machine_without_data_since_timestamp_seconds", text, False, ("domain",), samples),
            Family("guestd_machine_agents", AGENTS_HELP, False, ("channel", "dialect"), counted),
            Family("guestd_store_alarms", ALARMS_HELP, False, ("kind",), alarms),
        ]

    async def run(self) -> None:
        """Once a minute, for ever; without a store it waits."""

        async def look_after() -> None:
            while True:
                await self.once()
                await asyncio.sleep(UPKEEP_SECONDS)

        await run_with_retry(
            look_after,
            expected=(StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=60),
            on_failure=_waits,
        )

    async def once(self) -> None:
        """For all hosts, if nobody else is at it: ports, old events, roll-ups; then who does not report on this one."""
        async with connection_to(self._dsn) as connection, sorted_errors():
            async with connection.transaction():
                cursor = await connection.execute(query("maintenance/lock_maintenance"))
                if await cursor.fetchone() == (True,):
                    await connection.execute(query("maintenance/merge_ports"))
                    await connection.execute(query("maintenance/delete_old_reconcile_events"))
            # Before the roll-ups: it is what tells of those that do not go on.
            await self._look_over()
            await _roll_up(connection)
            cursor = await connection.execute(query("maintenance/read_machines_without_data"), self._host)
            self._since = dict(await cursor.fetchall())
            cursor = await connection.execute(query("maintenance/read_agent_counts"), self._host)
            self._agents = await cursor.fetchall()
        self._silent(len(self._since))

    async def _look_over(self) -> None:
        """At the start and every hour: say what `gueststore check` would."""
        now = asyncio.get_running_loop().time()
        if self._looked_over_at is not None and now < self._looked_over_at + LOOKED_OVER_SECONDS:
            return
        found = await asyncio.to_thread(_alarms, self._dsn)
        self._looked_over_at = now
        self._alarms = Counter(alarm.kind for alarm in found)
        for alarm in found:
            log.warning("the store wants a person", kind=alarm.kind, why=alarm.sentence)


def _alarms(dsn: str) -> list[Alarm]:
    try:
        return read_alarms(dsn)
    except (StoreError, ConfigurationError) as exc:
        raise StoreUnavailable(str(exc)) from exc


def _waits(exc: Exception, seconds: float) -> None:
    # The writer says that the store is away.
    say = log.debug if isinstance(exc, StoreUnavailable) else log.warning
    say("the upkeep of machines waits", error=str(exc), retry_seconds=round(seconds, 1))


async def _roll_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """What waits and is closed: minutes before the hours that they are part of, machines before the fleet."""
    for step, most, in_all in ROLL_UPS:
        done = 0
        while done < in_all:
            cursor = await connection.execute(query(step), {"most": most})
            ((rolled_up,),) = await cursor.fetchall()
            if rolled_up == 0:
                break
            done += rolled_up
