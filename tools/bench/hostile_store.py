"""A store in which one machine is at every limit of a message and of a rate, among others that report as usual."""

import uuid
from typing import Any

import psycopg

from gueststore.queries import query

# What a message may list at most (guestd.wire.limits), and rows that a guest can add within its budget in minutes.
SOCKETS = 20_000
PROCESSES = 5_000
APPLICATIONS = 2_000
INVENTORY = 10_000
HISTORY = 352_000
EVENTS = 100_000
FRAMES = 10_000
# Full messages of the hostile machine. The newest is within the last ten minutes, as is every other machine's.
MESSAGES = 4

# Beside it every other machine has this many processes, listening ports, applications and services.
USUAL = 100

# The newest of now, the others of an hour that is closed.
SAMPLES = """
INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage", "totalMemoryKB",
    "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats", "uptime")
SELECT machine."id", CASE place
        WHEN 1 THEN now() - INTERVAL '40 seconds'
        ELSE date_trunc('hour', now(), 'UTC') - INTERVAL '2 hours' + place * INTERVAL '30 seconds'
    END, 1, '[]', 8000000, 4000000, 3000000, '[]', '{}', '[]', 1
FROM "Machine" AS machine, generate_series(1, %(messages)s) AS place
"""
LISTS = (
    """
INSERT INTO "ProcessSnapshot" ("machineId", "timestamp", "processId", "name", "cpuUsagePercent", "memoryUsageKB",
    "status")
SELECT sample."machineId", sample."timestamp", number, 'process-' || place || '-' || number, 1, 1000, 'sleeping'
FROM (
    SELECT *, row_number() OVER (ORDER BY "timestamp") AS place FROM "SystemMetrics"
    WHERE ("machineId" = %(machine_id)s) = %(is_hostile)s
) AS sample, generate_series(1, %(processes)s) AS number
""",
    """
INSERT INTO "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state", "processId", "processName",
    "isListening")
SELECT sample."machineId", sample."timestamp", number, (place * 20000 + number) %% 65536, 'TCP', 'LISTEN', number,
    'process-' || place || '-' || number, TRUE
FROM (
    SELECT *, row_number() OVER (ORDER BY "timestamp") - 1 AS place FROM "SystemMetrics"
    WHERE ("machineId" = %(machine_id)s) = %(is_hostile)s
) AS sample, generate_series(1, %(sockets)s) AS number
""",
    """
INSERT INTO "ApplicationUsageHistory" ("machineId", "timestamp", "executablePath", "accessCount", "totalUsageMinutes",
    "isActive")
SELECT sample."machineId", sample."timestamp", 'path-' || place || '-' || number, 1, 1, TRUE
FROM (
    SELECT *, row_number() OVER (ORDER BY "timestamp") AS place FROM "SystemMetrics"
    WHERE ("machineId" = %(machine_id)s) = %(is_hostile)s
) AS sample, generate_series(1, %(applications)s) AS number
""",
    """
INSERT INTO "ApplicationUsage" ("machineId", "executablePath", "applicationName", "isActive", "lastSeen")
SELECT machine."id", 'path-1-' || number, 'name-' || number, number <= %(inventory)s / 2, now() - INTERVAL '2 minutes'
FROM "Machine" AS machine, generate_series(1, %(inventory)s) AS number
WHERE (machine."id" = %(machine_id)s) = %(is_hostile)s
""",
    """
INSERT INTO "WindowsService" ("machineId", "serviceName", "displayName", "serviceType", "startType", "currentState",
    "lastSeen")
SELECT machine."id", 'service-' || number, 's', 'own', 'auto', 'running', now() - INTERVAL '2 minutes'
FROM "Machine" AS machine, generate_series(1, %(inventory)s) AS number
WHERE (machine."id" = %(machine_id)s) = %(is_hostile)s
""",
    """
INSERT INTO "ServiceStateHistory" ("serviceId", "fromState", "toState", "reason", "timestamp")
SELECT service."id", 'running', 'stopped', 'automatic', now() - number * INTERVAL '1 second'
FROM "WindowsService" AS service, generate_series(1, %(changes)s) AS number
WHERE (service."machineId" = %(machine_id)s) = %(is_hostile)s
""",
    """
INSERT INTO "GuestEvent" ("machineId", "receivedAt", "type", "message")
SELECT machine."id", now() - number * INTERVAL '1 second', 'error_report', repeat('x', 1000)
FROM "Machine" AS machine, generate_series(1, %(events)s) AS number
WHERE (machine."id" = %(machine_id)s) = %(is_hostile)s
""",
    """
INSERT INTO "QuarantinedFrame" ("machineId", "receivedAt", "spoolId", "seq", "reason", "detail", "payload",
    "frameDigest")
SELECT machine."id", now(), machine."id", number, 'json', 'x', convert_to(repeat('x', 5000), 'UTF8'), number
FROM "Machine" AS machine, generate_series(1, %(frames)s) AS number
WHERE (machine."id" = %(machine_id)s) = %(is_hostile)s
""",
)
USUAL_ROWS: dict[str, Any] = {
    "is_hostile": False, "processes": USUAL, "sockets": 10, "applications": USUAL, "inventory": USUAL, "changes": 1,
    "events": 10, "frames": 1,
}  # fmt: skip
HOSTILE_ROWS: dict[str, Any] = {
    "is_hostile": True, "processes": PROCESSES, "sockets": SOCKETS, "applications": APPLICATIONS,
    # Changes are of each service.
    "inventory": INVENTORY, "changes": HISTORY // INVENTORY, "events": EVENTS, "frames": FRAMES,
}  # fmt: skip


def fill_store(connection: psycopg.Connection[Any], machine_id: uuid.UUID, *, shares: float = 1.0) -> None:
    """Let every machine report; `machine_id` is at its limits, or at a part of them (`shares`, 0 to 1)."""
    connection.execute(SAMPLES, {"messages": MESSAGES})
    hostile = {
        name: count if name in ("is_hostile", "changes") else max(USUAL_ROWS[name], int(count * shares))
        for name, count in HOSTILE_ROWS.items()
    }
    for statement in LISTS:
        for numbers in (USUAL_ROWS, hostile):
            connection.execute(statement.encode(), {"machine_id": machine_id, **numbers})


INCOMING = (
    """
INSERT INTO incoming_service ("machineId", "receivedAt", "serviceName", "displayName", "startType", "serviceType",
    "currentState", "isDefaultService")
SELECT %(machine_id)s, now() + place * INTERVAL '1 second', 'service-' || number, 's', 'auto', 'own', place::text, FALSE
FROM generate_series(1, %(messages)s) AS place, generate_series(1, %(services)s) AS number
""",
    """
INSERT INTO incoming_application ("machineId", "receivedAt", "executablePath", "applicationName", "accessCount",
    "totalUsageMinutes", "isActive")
SELECT %(machine_id)s, now() + place * INTERVAL '1 second', 'path-1-' || number, place::text, 1, 1, TRUE
FROM generate_series(1, %(messages)s) AS place, generate_series(1, %(services)s) AS number
""",
)


def stage_inventories(connection: psycopg.Connection[Any], machine_id: uuid.UUID, *, shares: float = 1.0) -> None:
    """Begin a batch with the lists of services and applications of the hostile machine; every service flips."""
    connection.execute(query("ingest/create_incoming"))
    for statement in INCOMING:
        numbers = {"machine_id": machine_id, "messages": MESSAGES, "services": int(APPLICATIONS * shares)}
        connection.execute(statement.encode(), numbers)
