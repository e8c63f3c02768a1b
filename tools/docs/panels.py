"""The panels of deploy/grafana's dashboards: a title, a kind, a unit, and a query to the store or to Prometheus.

`$machine` is a Machine.id, `$instance` a guestd; `$__timeFilter(column)`, `$__timeFrom()` and `$__timeTo()` are
Grafana's macros for the selected time range. `./dev bench store` runs every query over 24 h of 1,000 machines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

Kind = Literal["timeseries", "stat", "table", "bargauge"]


@dataclass(frozen=True, slots=True)
class Panel:
    """`unit` is Grafana's name of it; `warns_at` and `alarms_at` are thresholds; `links_to` is a dashboard's uid."""

    title: str
    kind: Kind
    unit: str
    sql: str = ""
    promql: str = ""
    legend: str = ""
    warns_at: float | None = None
    alarms_at: float | None = None
    links_to: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. `variables` are keys of `VARIABLES`."""

    uid: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[str, ...] = ()
    since: str = "now-6h"


# name: (label, query to the store or Prometheus)
VARIABLES = {
    "machine": ("Machine", 'SELECT "name" AS __text, "id"::text AS __value FROM "Machine" ORDER BY "name"'),
    "instance": ("guestd", "label_values(guestd_build_info, instance)"),
}

_SAMPLE = 'FROM "SystemMetrics" WHERE "machineId" = \'$machine\' AND $__timeFilter("timestamp") ORDER BY "timestamp"'
_LATEST = (
    'FROM "Machine" AS machine CROSS JOIN LATERAL (SELECT * FROM "SystemMetrics" AS sample'
    ' WHERE sample."machineId" = machine."id" AND $__timeFilter(sample."timestamp")'
    ' ORDER BY sample."timestamp" DESC LIMIT 1) AS sample'
)

FLEET = Board(
    "guestd-fleet", "Fleet", (
        Panel("Machines", "stat", "short", sql='SELECT count(*) FROM "Machine"'),
        Panel("Reporting", "stat", "short", promql="sum(count(guest_cpu_usage_ratio) or vector(0))"),
        Panel("Silent", "stat", "short", promql="sum(guestd_machines_without_data)", warns_at=1, alarms_at=5),
        Panel("Fullest disk", "stat", "percentunit", promql="max(guest_disk_fullest_ratio) or vector(0)",
              warns_at=0.8, alarms_at=0.95),
        Panel("CPU in use, top ten", "timeseries", "percentunit", promql="topk(10, guest_cpu_usage_ratio)",
              legend="{{domain}}"),
        Panel("Memory in use, top ten", "timeseries", "percentunit",
              promql="topk(10, clamp_max(guest_memory_used_bytes / (guest_memory_total_bytes > 0), 1))",
              legend="{{domain}}"),
        Panel("Fleet CPU", "timeseries", "percent", sql=(
            'SELECT "at" AS time, "cpuUsagePercentAvg" AS "mean", "cpuUsagePercentMax" AS "busiest"'
            ' FROM guestd_fleet_series($__timeFrom(), $__timeTo())'
        )),
        Panel("Fleet processes by CPU time", "table", "short", sql=(
            'SELECT "name", "machines", round("cpuUsagePercent"::numeric, 1) AS "CPU % of a core",'
            ' round(("memoryUsageKB" / 1024)::numeric) AS "memory MiB"'
            ' FROM guestd_top_processes(NULL, $__timeFrom(), $__timeTo(), 20)'
        )),
        Panel("Latest sample of each machine", "table", "short", links_to="guestd-machine", sql=(
            'SELECT machine."id", machine."name", machine."status", sample."timestamp" AS "last sample",'
            ' sample."cpuUsagePercent" AS "CPU %",'
            ' round(least(100.0, 100.0 * sample."usedMemoryKB" / nullif(sample."totalMemoryKB", 0))) AS "memory %",'
            ' sample."uptime" AS "uptime s" ' + _LATEST + ' ORDER BY machine."name"'
        )),
        Panel("Machines by status", "bargauge", "short",
              sql='SELECT "status", count(*) AS "machines" FROM "Machine" GROUP BY "status" ORDER BY "status"'),
    ),
)  # fmt: skip

MACHINE = Board(
    "guestd-machine", "One machine", (
        Panel("CPU", "timeseries", "percent", warns_at=80, alarms_at=95,
              sql='SELECT "timestamp" AS time, "cpuUsagePercent" AS "CPU" ' + _SAMPLE),
        Panel("Memory", "timeseries", "bytes", sql=(
            'SELECT "timestamp" AS time, "usedMemoryKB" * 1024.0 AS "used", "totalMemoryKB" * 1024.0 AS "total" '
            + _SAMPLE
        )),
        Panel("File systems", "timeseries", "percent", warns_at=80, alarms_at=95, sql=(
            'SELECT "timestamp" AS time, disk ->> \'mountPoint\' AS metric,'
            " 100 * least(1, guestd_number_of(disk, 'usedGB')"
            " / nullif(guestd_number_of(disk, 'totalGB'), 0)) AS \"used\""
            ' FROM "SystemMetrics", jsonb_array_elements("diskUsageStats") AS disk'
            ' WHERE "machineId" = \'$machine\' AND $__timeFilter("timestamp") ORDER BY 1'
        )),
        Panel("Disk traffic", "timeseries", "Bps", sql=(
            'SELECT "timestamp" AS time, guestd_number_of("diskIOStats", \'readBytesPerSec\') AS "read",'
            ' guestd_number_of("diskIOStats", \'writeBytesPerSec\') AS "written" ' + _SAMPLE
        )),
        Panel("Network", "timeseries", "Bps", sql=(
            'SELECT "timestamp" AS time, interface ->> \'interface\' AS metric,'
            " guestd_number_of(interface, 'bytesReceived') AS \"received\","
            " guestd_number_of(interface, 'bytesSent') AS \"sent\""
            ' FROM "SystemMetrics", jsonb_array_elements("networkStats") AS interface'
            ' WHERE "machineId" = \'$machine\' AND $__timeFilter("timestamp") ORDER BY 1'
        )),
        Panel("Processes by CPU time", "timeseries", "percent", sql=(
            'SELECT "at" AS time, "name" AS metric, "cpuUsagePercent" AS "CPU"'
            " FROM guestd_process_series('$machine', $__timeFrom(), $__timeTo()) ORDER BY 1"
        )),
        Panel("Applications", "table", "short", sql=(
            'SELECT "applicationName", "version", "publisher", "totalUsageMinutes" AS "minutes", "lastSeen", "isActive"'
            ' FROM "ApplicationUsage" WHERE "machineId" = \'$machine\' ORDER BY "lastAccessTime" DESC NULLS LAST'
        )),
        Panel("Listening ports", "table", "short", sql=(
            'SELECT "port", "protocol", "processName", "connectionCount", "timestamp"'
            ' FROM "ListeningPort" WHERE "machineId" = \'$machine\' ORDER BY "port", "protocol"'
        )),
        Panel("Services", "table", "short", sql=(
            'SELECT "serviceName", "displayName", "startType", "currentState", "lastStateChange", "stateChangeCount"'
            ' FROM "WindowsService" WHERE "machineId" = \'$machine\' ORDER BY "serviceName"'
        )),
    ), ("machine",),
)  # fmt: skip

DEPARTMENTS = Board(
    "guestd-departments", "Departments and capacity", (
        Panel("Machines by department", "bargauge", "short", sql=(
            'SELECT coalesce(department."name", \'(none)\') AS "department", count(*) AS "machines"'
            ' FROM "Machine" AS machine LEFT JOIN "Department" AS department'
            ' ON machine."departmentId" = department."id" GROUP BY 1 ORDER BY 1'
        )),
        Panel("Usage by department", "table", "short", sql=(
            'SELECT coalesce(department."name", \'(none)\') AS "department", count(*) AS "machines",'
            ' round(avg(sample."cpuUsagePercent")::numeric, 1) AS "CPU %",'
            ' round(sum(sample."usedMemoryKB") / 1048576.0, 1) AS "memory used GiB",'
            ' round(sum(sample."totalMemoryKB") / 1048576.0, 1) AS "memory GiB" '
            + _LATEST + ' LEFT JOIN "Department" AS department ON machine."departmentId" = department."id"'
            " GROUP BY 1 ORDER BY 1"
        )),
        Panel("Allocated to machines", "table", "short", sql=(
            'SELECT coalesce(host."name", \'(none)\') AS "host", count(*) AS "machines",'
            ' sum(machine."cpuCores") AS "cores", sum(machine."ramGB") AS "memory GB",'
            ' sum(machine."diskSizeGB") AS "disk GB" FROM "Machine" AS machine'
            ' LEFT JOIN "Host" AS host ON machine."hostId" = host."id" GROUP BY 1 ORDER BY 1'
        )),
        Panel("Idle machines, by whole hours", "table", "short", links_to="guestd-machine", sql=(
            'SELECT machine."id", machine."name",'
            ' round(avg(guestd_bounded(hour."cpuUsagePercentAvg"))::numeric, 1) AS "CPU %"'
            ' FROM "Machine" AS machine LEFT JOIN "SystemMetricsHour" AS hour ON hour."machineId" = machine."id"'
            ' AND $__timeFilter(hour."bucket") GROUP BY 1, 2 ORDER BY 3 LIMIT 20'
        )),
    ), since="now-24h",
)  # fmt: skip

FILTERS = Board(
    "guestd-filters", "Network filters and drift", (
        Panel("Desired", "stat", "short", promql='sum(guestd_filters_wanted{instance=~"$instance"})'),
        Panel("In force", "stat", "short", promql='sum(guestd_filters_in_force{instance=~"$instance"})'),
        Panel("Pending", "stat", "short", promql='sum(guestd_filters_pending{instance=~"$instance"})', warns_at=1),
        Panel("Held plans", "stat", "short", promql='sum(guestd_filters_held{instance=~"$instance"})', alarms_at=1),
        Panel("Detected drift", "timeseries", "short",
              promql='increase(guestd_filters_drift_total{instance=~"$instance"}[5m])', legend="{{instance}}"),
        Panel("Reports that need manual action, by kind", "timeseries", "short",
              promql='sum by (kind) (guestd_filters_reports{instance=~"$instance"}) or vector(0)', legend="{{kind}}"),
        Panel("Filters", "table", "short", sql=(
            'SELECT filter."name", filter."type", count(DISTINCT rule."id") AS "rules",'
            ' count(DISTINCT used."vmId") AS "machines", filter."problem", filter."updatedAt"'
            ' FROM "NWFilter" AS filter LEFT JOIN "FWRule" AS rule ON rule."nwFilterId" = filter."id"'
            ' LEFT JOIN "VMNWFilter" AS used ON used."nwFilterId" = filter."id" GROUP BY filter."id" ORDER BY 1'
        )),
        Panel("Actions taken", "table", "short", sql=(
            'SELECT "occurredAt" AS time, "name", "action", "reason", "outcome" FROM "ReconcileEvent"'
            ' WHERE $__timeFilter("occurredAt") ORDER BY "occurredAt" DESC LIMIT 200'
        )),
    ), ("instance",),
)  # fmt: skip

HEALTH = Board(
    "guestd-health", "guestd's own health", (
        Panel("Up", "stat", "short", promql='sum(up{job="guestd"})'),
        Panel("Channels connected", "stat", "short", promql='sum(guestd_channels_connected{instance=~"$instance"})'),
        Panel("Spool used", "stat", "percentunit", warns_at=0.5, alarms_at=0.95, promql=(
            'max(guestd_spool_bytes{instance=~"$instance"} / guestd_spool_limit_bytes{instance=~"$instance"})'
        )),
        Panel("Quarantined frames", "stat", "short", warns_at=1,
              promql='max(guestd_quarantine_frames{instance=~"$instance"})'),
        Panel("Frames accepted", "timeseries", "cps", legend="{{instance}}",
              promql='rate(guestd_frames_accepted_total{instance=~"$instance"}[5m])'),
        Panel("Frames by outcome", "timeseries", "cps", legend="{{outcome}}",
              promql='sum by (outcome) (rate(guestd_frames_done_total{instance=~"$instance"}[5m]))'),
        Panel("Refused lines", "timeseries", "cps", legend="{{reason}}",
              promql='sum by (reason) (rate(guestd_frames_refused_total{instance=~"$instance"}[5m])) or vector(0)'),
        Panel("From receipt to commit, 99th percentile", "timeseries", "s", legend="{{instance}}", promql=(
            "histogram_quantile(0.99, sum by (instance, le) "
            '(rate(guestd_receive_to_commit_seconds_bucket{instance=~"$instance"}[5m])))'
        )),
        Panel("Transaction of a batch, 99th percentile", "timeseries", "s", legend="{{instance}}", promql=(
            "histogram_quantile(0.99, sum by (instance, le) "
            '(rate(guestd_write_seconds_bucket{instance=~"$instance"}[5m])))'
        )),
        Panel("Spool commit, 99th percentile", "timeseries", "s", legend="{{instance}}", promql=(
            "histogram_quantile(0.99, sum by (instance, le) "
            '(rate(guestd_spool_commit_seconds_bucket{instance=~"$instance"}[5m])))'
        )),
        Panel("From receipt to spool, 99th percentile", "timeseries", "s", legend="{{instance}}", promql=(
            "histogram_quantile(0.99, sum by (instance, le) "
            '(rate(guestd_receive_to_spool_seconds_bucket{instance=~"$instance"}[5m])))'
        )),
        Panel("Failed store health checks, by kind", "timeseries", "short", legend="{{kind}}", warns_at=1,
              promql='max by (kind) (guestd_store_alarms{instance=~"$instance"}) or vector(0)'),
        Panel("Schema differences", "timeseries", "short", legend="{{instance}}", warns_at=1,
              promql='max by (instance) (guestd_schema_differences{instance=~"$instance"})'),
        Panel("Rows written", "timeseries", "cps", legend="{{table}}",
              promql='sum by (table) (rate(guestd_rows_written_total{instance=~"$instance"}[5m]))'),
        Panel("Memory and CPU", "timeseries", "bytes", legend="{{instance}}",
              promql='process_resident_memory_bytes{job="guestd", instance=~"$instance"}'),
        Panel("Quarantined frames by reason", "table", "short", sql=(
            'SELECT "reason", count(*) AS "frames", max("receivedAt") AS "last" FROM "QuarantinedFrame"'
            ' WHERE $__timeFilter("receivedAt") GROUP BY 1 ORDER BY 2 DESC'
        )),
    ), ("instance",),
)  # fmt: skip

BOARDS = (FLEET, MACHINE, DEPARTMENTS, FILTERS, HEALTH)


def fill_in_macros(sql: str, machine_id: object, hours: int) -> str:
    """The query that Grafana sends for the last `hours`: macros and variables are replaced."""
    now = datetime.now(UTC)
    since, until = f"'{now - timedelta(hours=hours)}'", f"'{now}'"
    sql = re.sub(r"\$__timeFilter\(([^)]*)\)", rf"\1 BETWEEN {since} AND {until}", sql)
    sql = sql.replace("$__timeFrom()", since).replace("$__timeTo()", until)
    return sql.replace("$machine", str(machine_id))
