"""What the daemon relies on: the tables it COPYs into, and the schema version.

Each table is declared once, as the class of its rows. A field is a column: its name, its type in PostgreSQL and in
Python, its unit, and whether it may be NULL. COPY's columns, the kinds of values that the compiled encoder takes, and
what the tests demand of rows all come from this declaration, which a test compares with the live catalogue.

What all rows of a message have in common (`Shared`) is in none of these classes: it is kept once a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from operator import itemgetter
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints
from uuid import UUID

# The newest migration that this code was written for.
SCHEMA_VERSION = 21

# Types of columns, by PostgreSQL's names as psycopg's `Copy.set_types` takes them; where a unit belongs to it, by unit.
Uuid = Annotated[UUID, "uuid"]
Time = Annotated[datetime, "timestamptz"]
UnixTime = Annotated[datetime | float, "timestamptz"]  # or unix seconds, as a guest wrote them
Text = Annotated[str, "text"]
Json = Annotated[bytes, "jsonb"]
Bytes = Annotated[bytes, "bytea"]
Bool = Annotated[bool, "bool"]
Int4 = Annotated[int, "int4"]
Int8 = Annotated[int, "int8"]
Float8 = Annotated[float, "float8"]
Percent = Annotated[float, "float8"]
Celsius = Annotated[float, "float8"]
KiB = Annotated[int, "int8"]
ByteCount = Annotated[int, "int8"]
Seconds = Annotated[int, "int8"]
Minutes = Annotated[int, "int4"]


class Shared(NamedTuple):
    """What all rows of a message have in common; `SHARED_COLUMNS` names the columns that hold it."""

    row_id: Uuid
    machine_id: Uuid
    timestamp: Time
    received_at: Time
    digest: Int8 | None


class SystemMetrics(NamedTuple):
    """A sample."""

    cpuUsagePercent: Percent
    cpuCoresUsage: Json
    cpuTemperature: Celsius | None
    totalMemoryKB: KiB
    usedMemoryKB: KiB
    availableMemoryKB: KiB
    swapTotalKB: KiB | None
    swapUsedKB: KiB | None
    diskUsageStats: Json
    diskIOStats: Json
    networkStats: Json
    uptime: Seconds
    loadAverage: Json | None


class ProcessSnapshot(NamedTuple):
    """A process at the time of a sample."""

    processId: Int4
    parentPid: Int4 | None
    name: Text
    executablePath: Text | None
    commandLine: Text | None
    cpuUsagePercent: Percent
    memoryUsageKB: KiB
    diskReadBytes: ByteCount | None
    diskWriteBytes: ByteCount | None
    status: Text
    startTime: UnixTime | None


class PortUsage(NamedTuple):
    """The sockets of one port, protocol, state and process at the time of a sample."""

    ordinal: Int4
    port: Int4
    protocol: Text
    state: Text
    processId: Int4 | None
    processName: Text | None
    executablePath: Text | None
    isListening: Bool
    connectionCount: Int4


class ApplicationUsageHistory(NamedTuple):
    """An application at the time of a sample."""

    executablePath: Text
    accessCount: Int4
    totalUsageMinutes: Minutes
    isActive: Bool


class IncomingApplication(NamedTuple):
    """An application as the inventory of a message describes it."""

    executablePath: Text
    applicationName: Text
    version: Text | None
    description: Text | None
    publisher: Text | None
    lastAccessTime: Time | None
    lastModifiedTime: Time | None
    accessCount: Int4
    totalUsageMinutes: Minutes
    iconData: Bytes | None
    iconFormat: Text | None
    fileSize: ByteCount | None
    isActive: Bool


class IncomingService(NamedTuple):
    """A Windows service as the inventory of a message describes it."""

    serviceName: Text
    displayName: Text
    description: Text | None
    startType: Text
    serviceType: Text
    executablePath: Text | None
    dependencies: Json | None
    currentState: Text
    processId: Int4 | None
    isDefaultService: Bool


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `shared` names the field of `Shared` that is its value, None where each row has its own."""

    name: str
    type: str
    is_nullable: bool
    shared: str | None = None


@dataclass(frozen=True)
class Table:
    """A table and its columns in COPY order: first those that the rows of a message share, then each row's own."""

    name: str
    columns: tuple[Column, ...]
    key: str | None = None
    """The column that tells the rows of one sample apart, where it has several."""

    @cached_property
    def types(self) -> Mapping[str, str]:
        """The type of each column, by name."""
        return {column.name: column.type for column in self.columns}

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The fields of `Shared` in the order in which the table's columns begin."""
        return tuple(column.shared for column in self.columns if column.shared is not None)

    @cached_property
    def key_of(self) -> Callable[[tuple[Any, ...]], Any]:
        """The key in what is a row's own."""
        own = [column.name for column in self.columns if column.shared is None]
        return itemgetter(own.index(str(self.key)))

    @cached_property
    def column_list(self) -> str:
        """The names of the columns, quoted, as statements take them."""
        return ", ".join(f'"{name}"' for name in self.types)


def _table(name: str, row: type, key: str | None = None, **shared: str) -> Table:
    """The table of a class of rows; `shared` gives columns that hold a field of `Shared`."""
    common = get_type_hints(Shared, include_extras=True)
    columns = [_column(column, common[field], field) for column, field in shared.items()]
    columns += [_column(column, hint) for column, hint in get_type_hints(row, include_extras=True).items()]
    return Table(name, tuple(columns), key)


def _column(name: str, hint: Any, shared: str | None = None) -> Column:
    """The column of an annotated field: `Annotated[...]`, or that or None."""
    (type_name,) = next(each.__metadata__ for each in (hint, *get_args(hint)) if hasattr(each, "__metadata__"))
    return Column(name, type_name, NoneType in get_args(hint), shared)


_OF_A_SAMPLE = {"machineId": "machine_id", "timestamp": "timestamp"}
_OF_AN_INVENTORY = {"machineId": "machine_id", "receivedAt": "received_at"}

SYSTEM_METRICS = _table(
    "SystemMetrics", SystemMetrics, id="row_id", **_OF_A_SAMPLE, receivedAt="received_at", frameDigest="digest"
)
PROCESS_SNAPSHOT = _table("ProcessSnapshot", ProcessSnapshot, key="processId", **_OF_A_SAMPLE)
PORT_USAGE = _table("PortUsage", PortUsage, key="ordinal", **_OF_A_SAMPLE, lastActivity="timestamp")
APPLICATION_USAGE_HISTORY = _table(
    "ApplicationUsageHistory", ApplicationUsageHistory, key="executablePath", **_OF_A_SAMPLE
)
# The hypertables, in the order in which a batch writes them.
SERIES = (SYSTEM_METRICS, PROCESS_SNAPSHOT, PORT_USAGE, APPLICATION_USAGE_HISTORY)

# Temporary tables of queries/ingest/create_incoming.sql, merged by queries/ingest/merge_*.sql.
INCOMING_APPLICATION = _table("incoming_application", IncomingApplication, key="executablePath", **_OF_AN_INVENTORY)
INCOMING_SERVICE = _table("incoming_service", IncomingService, key="serviceName", **_OF_AN_INVENTORY)
TABLES = (*SERIES, INCOMING_APPLICATION, INCOMING_SERVICE)


def mismatch(version: int, compat: int) -> str | None:
    """Say in one sentence why this code cannot work on a database, or None when it can.

    `version` is the newest migration that the database has run, 0 for none; `compat` the highest compat
    number among them: the oldest version whose programs still work there (queries/schema/read_version.sql).
    """
    if version < SCHEMA_VERSION:
        return (
            f"the database is at schema version {version} and this program needs {SCHEMA_VERSION}: "
            "run `gueststore migrate`"
        )
    if compat > SCHEMA_VERSION:
        return (
            f"the database is at schema version {version}, which works with programs of version {compat} "
            f"or newer, and this program is of version {SCHEMA_VERSION}: install a newer guestd"
        )
    return None
