"""The typed read API of the store, for command lines, dashboards and other services.

Each function runs one query of sql/queries/read_api on the caller's connection; the role guestd_reader suffices. Each
query uses an index or a roll-up (tests/integration/schema/test_plans.py). Times are aware datetimes and memory is in
KiB. CPU of a machine is in percent of all its cores, of a process in percent of one core. psycopg's errors propagate.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from gueststore.queries import query

AsyncConnection = psycopg.AsyncConnection[Any]
Row = TypeVar("Row")

PAGE_ROWS = 500
# Before every sample and after every change: the start of a first page.
_BEFORE_ALL = (datetime(1970, 1, 1, tzinfo=UTC), -1)
_AFTER_ALL = (datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1))


@dataclass(frozen=True, slots=True)
class MachineNow:
    """A machine and its latest sample; `at` and the fields after it are None without a sample."""

    id: UUID
    name: str
    internal_name: str
    status: str
    at: datetime | None
    cpu_percent: float | None
    used_memory_kb: int | None
    total_memory_kb: int | None
    uptime_seconds: int | None


@dataclass(frozen=True, slots=True)
class Point:
    """A sample (`resolution` raw), or the mean of a minute or an hour from `at` on."""

    at: datetime
    resolution: str
    samples: int
    cpu_percent: float
    cpu_percent_max: float
    used_memory_kb: float
    total_memory_kb: int
    disk_read_bytes_per_second: float | None
    disk_write_bytes_per_second: float | None
    network_received_bytes_per_second: float | None
    network_sent_bytes_per_second: float | None
    load: float | None


@dataclass(frozen=True, slots=True)
class FleetPoint:
    """All machines that reported in a minute or an hour from `at` on; each machine has the same weight in the means."""

    at: datetime
    machines: int
    cpu_percent: float
    cpu_percent_max: float
    used_memory_kb: float


@dataclass(frozen=True, slots=True)
class Process:
    """A process in a sample. (at, process_id) is the cursor for the next page."""

    at: datetime
    process_id: int
    name: str
    cpu_percent: float
    memory_kb: int
    status: str
    command_line: str | None


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Mean use by the processes of one name over the window, summed over `machines` (the maximum of any hour)."""

    name: str
    machines: int
    cpu_percent: float
    memory_kb: float


@dataclass(frozen=True, slots=True)
class ListeningPort:
    """A listening port and the process that opened it, where the guest reports one."""

    at: datetime
    port: int
    protocol: str
    process_id: int | None
    process_name: str | None
    executable_path: str | None


@dataclass(frozen=True, slots=True)
class Application:
    """An installed application; `is_used` when it was used in the last 30 days."""

    id: UUID
    name: str
    executable_path: str
    last_access_at: datetime | None
    usage_minutes: int
    is_used: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A state change of a service, or an action of guestd on the machine. (at, id) is the cursor for the next page."""

    at: datetime
    id: UUID
    kind: str
    name: str
    from_state: str | None
    to_state: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class SilentMachine:
    """A machine whose state is running or unknown and that has not reported for 5 minutes."""

    id: UUID
    name: str
    state: str
    since: datetime


async def read_machines(connection: AsyncConnection, identifier: str | None = None) -> list[MachineNow]:
    """Return every machine with its latest sample, or those with the id, internalName or name `identifier`; by name."""
    return await _read(connection, MachineNow, "read_api/read_machines", identifier=identifier)


async def read_series(
    connection: AsyncConnection, machine_id: UUID, since: datetime, until: datetime, *, points: int = 400
) -> list[Point]:
    """Return a machine's series in [since, until), in the finest resolution with at most about `points` points."""
    window = {"since": since, "until": until, "points": points}
    return await _read(connection, Point, "read_api/read_series", machine_id=machine_id, **window)


async def read_fleet(
    connection: AsyncConnection, since: datetime, until: datetime, *, points: int = 400
) -> list[FleetPoint]:
    """Return the fleet's series in [since, until): minutes up to four times `points` of them, else hours."""
    return await _read(connection, FleetPoint, "read_api/read_fleet", since=since, until=until, points=points)


async def read_processes(
    connection: AsyncConnection,
    machine_id: UUID,
    since: datetime,
    until: datetime,
    *,
    after: Process | None = None,
    most: int = PAGE_ROWS,
) -> list[Process]:
    """Return a page of at most `most` processes in order of time: the first, or the one that follows `after`."""
    at, process_id = (after.at, after.process_id) if after else _BEFORE_ALL
    place = {"since": since, "until": until, "after_at": at, "after_id": process_id, "most": most}
    return await _read(connection, Process, "read_api/read_processes", machine_id=machine_id, **place)


async def read_top_processes(
    connection: AsyncConnection, since: datetime, until: datetime, *, of: list[UUID] | None = None, most: int = 10
) -> list[ProcessUsage]:
    """Return the process names that used most CPU on these machines, or on all.

    Windows over 2 hours (over 10 minutes for all machines) are answered by the mean of whole hours.
    """
    return await _read(
        connection, ProcessUsage, "read_api/read_top_processes", machine_ids=of, since=since, until=until, most=most
    )


async def read_department_machines(connection: AsyncConnection, department_id: UUID) -> list[UUID]:
    """Return the ids of a department's machines, for `read_top_processes`."""
    cursor = await connection.execute(query("read_api/read_department_machines"), {"department_id": department_id})
    return [machine_id for (machine_id,) in await cursor.fetchall()]


async def read_ports(connection: AsyncConnection, machine_id: UUID) -> list[ListeningPort]:
    """Return the listening ports of a machine at its latest sample with ports."""
    return await _read(connection, ListeningPort, "read_api/read_ports", machine_id=machine_id)


async def read_applications(connection: AsyncConnection, machine_id: UUID) -> list[Application]:
    """Return the applications that are installed on a machine, by name."""
    return await _read(connection, Application, "read_api/read_applications", machine_id=machine_id)


async def read_changes(
    connection: AsyncConnection, machine_id: UUID, *, before: Change | None = None, most: int = PAGE_ROWS
) -> list[Change]:
    """Return a page of at most `most` changes, newest first: the first, or the one that follows `before`."""
    at, change_id = (before.at, before.id) if before else _AFTER_ALL
    place = {"before_at": at, "before_id": change_id, "most": most}
    return await _read(connection, Change, "read_api/read_changes", machine_id=machine_id, **place)


async def read_machines_without_data(connection: AsyncConnection) -> list[SilentMachine]:
    """Return the machines that run and do not report, the longest silence first."""
    return await _read(connection, SilentMachine, "read_api/read_machines_without_data")


async def _read(connection: AsyncConnection, kind: type[Row], name: str, **given: object) -> list[Row]:
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query(name), given)
        return await cursor.fetchall()
