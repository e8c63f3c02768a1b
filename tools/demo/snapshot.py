"""What the demo measures: the rows of every table, and guestd's own metrics."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from prometheus_client.parser import text_string_to_metric_families

SERIES = ("SystemMetrics", "ProcessSnapshot", "PortUsage", "ApplicationUsageHistory")
INVENTORIES = ("ApplicationUsage", "WindowsService", "ServiceStateHistory")
TABLES = (*SERIES, *INVENTORIES)

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tables and the spool at a moment of the monotonic clock."""

    moment_seconds: float
    rows: Mapping[str, int]
    spool_frames: int
    newest_age_seconds: float


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured: the database, and guestd's page of metrics."""

    connection: Connection
    metrics_url: str


@dataclass(frozen=True, slots=True)
class FrameCounts:
    """Frames that guestd accepted, and what the database says became of them."""

    accepted: int
    stored: int
    quarantined: int


def take_snapshot(target: Target) -> Snapshot:
    """Count everything once."""
    moment_seconds = time.monotonic()
    rows = {table: _read_number(target, f'SELECT count(*) FROM "{table}"') for table in TABLES}
    age_ms = """SELECT 1000 * extract(epoch FROM now() - max("timestamp")) FROM "SystemMetrics" """
    spool_frames = int(_read_metrics(target)["guestd_spool_frames"])
    return Snapshot(moment_seconds, rows, spool_frames, _read_number(target, age_ms) / 1000)


def is_drained(target: Target) -> bool:
    """Whether guestd has read all guests to the end and stored all it accepted."""
    metrics = _read_metrics(target)
    return metrics["guestd_channels_connected"] == 0 and metrics["guestd_spool_frames"] == 0


def count_frames(target: Target) -> FrameCounts:
    """The frames of a guestd that is drained. A stored frame is one row of SystemMetrics, whatever else it has."""
    return FrameCounts(
        accepted=int(_read_metrics(target)["guestd_frames_accepted_total"]),
        stored=_read_number(target, 'SELECT count(*) FROM "SystemMetrics"'),
        quarantined=_read_number(target, 'SELECT count(*) FROM "QuarantinedFrame" WHERE NOT "stored"'),
    )


def _read_metrics(target: Target) -> dict[str, float]:
    """guestd's metrics without labels, by name."""
    with urllib.request.urlopen(target.metrics_url, timeout=5) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def _read_number(target: Target, select: str) -> int:
    row = target.connection.execute(select.encode()).fetchone()
    return int(row[0] or 0) if row else 0
