"""Samples in a store with what listens, and the part of guestd that derives data from them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo

from guestd.store.rollups import RollupRefresher
from guestd.telemetry.registry import MaintenanceMetrics, VmMetrics


def refresher_of(dsn: str, registry: CollectorRegistry | None = None) -> RollupRefresher:
    # With exactly the rights of the daemon.
    as_writer = make_conninfo(dsn, options="-c role=guestd_writer")
    return RollupRefresher(
        as_writer, host_name="host", uri="", metrics=VmMetrics(registry), maintenance=MaintenanceMetrics(registry)
    )


def report(dsn: str, machine_id: UUID, *listening: tuple[int, str], age: timedelta = timedelta()) -> datetime:
    """A sample with these listeners and one port that is merely connected."""
    now = datetime.now(UTC)
    # The store keeps milliseconds; whole seconds would give two reports of one second the same key.
    moment = now.replace(microsecond=now.microsecond // 1000 * 1000) - age
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """INSERT INTO "SystemMetrics" ("machineId", "timestamp", "cpuUsagePercent", "cpuCoresUsage",
            "totalMemoryKB", "usedMemoryKB", "availableMemoryKB", "diskUsageStats", "diskIOStats", "networkStats",
            "uptime")
            VALUES (%s, %s, 0, '[]', 0, 0, 0, '[]', '{}', '[]', 0)""",
            (machine_id, moment),
        )
        usage: list[tuple[Any, ...]] = [(port, protocol, "LISTEN", True) for port, protocol in listening]
        for ordinal, each in enumerate([*usage, (50000, "TCP", "ESTABLISHED", False)]):
            connection.execute(
                """INSERT INTO "PortUsage" ("machineId", "timestamp", "ordinal", "port", "protocol", "state",
                "isListening") VALUES (%s, %s, %s, %s, %s, %s, %s)""",
                (machine_id, moment, ordinal, *each),
            )
    return moment
