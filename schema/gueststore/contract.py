"""What the daemon relies on: the tables it COPYs into, their columns in COPY order, and the schema version.

Types are PostgreSQL's own names, as psycopg's `Copy.set_types` takes them. A test holds this page against the
live catalogue.
"""

from dataclasses import dataclass

# The newest migration that this code was written for.
SCHEMA_VERSION = 15


@dataclass(frozen=True, slots=True)
class Table:
    """A table and its columns, (name, PostgreSQL type), in COPY order."""

    name: str
    columns: tuple[tuple[str, str], ...]


SYSTEM_METRICS = Table(
    "SystemMetrics",
    (
        ("id", "uuid"),
        ("machineId", "uuid"),
        ("timestamp", "timestamptz"),
        ("receivedAt", "timestamptz"),
        ("cpuUsagePercent", "float8"),
        ("cpuCoresUsage", "jsonb"),
        ("cpuTemperature", "float8"),
        ("totalMemoryKB", "int8"),
        ("usedMemoryKB", "int8"),
        ("availableMemoryKB", "int8"),
        ("swapTotalKB", "int8"),
        ("swapUsedKB", "int8"),
        ("diskUsageStats", "jsonb"),
        ("diskIOStats", "jsonb"),
        ("networkStats", "jsonb"),
        ("uptime", "int8"),
        ("loadAverage", "jsonb"),
        ("frameDigest", "int8"),
    ),
)

PROCESS_SNAPSHOT = Table(
    "ProcessSnapshot",
    (
        ("machineId", "uuid"),
        ("timestamp", "timestamptz"),
        ("processId", "int4"),
        ("parentPid", "int4"),
        ("name", "text"),
        ("executablePath", "text"),
        ("commandLine", "text"),
        ("cpuUsagePercent", "float8"),
        ("memoryUsageKB", "int8"),
        ("diskReadBytes", "int8"),
        ("diskWriteBytes", "int8"),
        ("status", "text"),
        ("startTime", "timestamptz"),
    ),
)

PORT_USAGE = Table(
    "PortUsage",
    (
        ("machineId", "uuid"),
        ("timestamp", "timestamptz"),
        ("ordinal", "int4"),
        ("port", "int4"),
        ("protocol", "text"),
        ("state", "text"),
        ("processId", "int4"),
        ("processName", "text"),
        ("executablePath", "text"),
        ("isListening", "bool"),
        ("connectionCount", "int4"),
        ("lastActivity", "timestamptz"),
    ),
)

APPLICATION_USAGE_HISTORY = Table(
    "ApplicationUsageHistory",
    (
        ("machineId", "uuid"),
        ("timestamp", "timestamptz"),
        ("executablePath", "text"),
        ("accessCount", "int4"),
        ("totalUsageMinutes", "int4"),
        ("isActive", "bool"),
    ),
)

# The hypertables, in the order in which a batch writes them.
SERIES = (SYSTEM_METRICS, PROCESS_SNAPSHOT, PORT_USAGE, APPLICATION_USAGE_HISTORY)

# Temporary tables of queries/ingest/create_incoming.sql, merged by queries/ingest/merge_*.sql.
INCOMING_APPLICATION = Table(
    "incoming_application",
    (
        ("machineId", "uuid"),
        ("receivedAt", "timestamptz"),
        ("executablePath", "text"),
        ("applicationName", "text"),
        ("version", "text"),
        ("description", "text"),
        ("publisher", "text"),
        ("lastAccessTime", "timestamptz"),
        ("lastModifiedTime", "timestamptz"),
        ("accessCount", "int4"),
        ("totalUsageMinutes", "int4"),
        ("iconData", "bytea"),
        ("iconFormat", "text"),
        ("fileSize", "int8"),
        ("isActive", "bool"),
    ),
)

INCOMING_SERVICE = Table(
    "incoming_service",
    (
        ("machineId", "uuid"),
        ("receivedAt", "timestamptz"),
        ("serviceName", "text"),
        ("displayName", "text"),
        ("description", "text"),
        ("startType", "text"),
        ("serviceType", "text"),
        ("executablePath", "text"),
        ("dependencies", "jsonb"),
        ("currentState", "text"),
        ("processId", "int4"),
        ("isDefaultService", "bool"),
    ),
)


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
