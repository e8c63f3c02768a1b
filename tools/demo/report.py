"""What the demo shows: how things stand while it runs, and what the database holds at its end.

All figures come from the database, but for the spool's, which guestd's own /metrics tells.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TextIO
from uuid import UUID

import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import dict_row

SERIES = ("SystemMetrics", "ProcessSnapshot", "PortUsage", "ApplicationUsageHistory")
INVENTORIES = ("ApplicationUsage", "WindowsService", "ServiceStateHistory")
TABLES = (*SERIES, *INVENTORIES)
BUSIEST_PROCESSES = 8
MOST_PORTS = 6
# Of a log that nobody watches live.
LINE_SECONDS = 5.0
KIB_PER_GIB = 1024 * 1024

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Look:
    """How things stand at a moment of the monotonic clock."""

    moment_seconds: float
    rows: Mapping[str, int]
    spool_frames: int
    newest_age_seconds: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked at: the database, and guestd's page of metrics."""

    connection: Connection
    metrics_url: str


@dataclass(frozen=True, slots=True)
class Books:
    """Frames: taken by guestd, and what the database says became of them."""

    accepted: int
    stored: int
    quarantined: int


def look(watched: Watched) -> Look:
    """Count everything once."""
    moment_seconds = time.monotonic()
    rows = {table: _number(watched, f'SELECT count(*) FROM "{table}"') for table in TABLES}
    age_ms = """SELECT 1000 * extract(epoch FROM now() - max("timestamp")) FROM "SystemMetrics" """
    spool_frames = int(_metrics(watched)["guestd_spool_frames"])
    return Look(moment_seconds, rows, spool_frames, _number(watched, age_ms) / 1000)


def is_settled(watched: Watched) -> bool:
    """Whether guestd has read all guests to the end and stored all it took."""
    metrics = _metrics(watched)
    return metrics["guestd_channels_connected"] == 0 and metrics["guestd_spool_frames"] == 0


def books(watched: Watched) -> Books:
    """The frames of a guestd that is settled. A stored frame is one row of SystemMetrics, whatever else it is."""
    return Books(
        accepted=int(_metrics(watched)["guestd_frames_accepted_total"]),
        stored=_number(watched, 'SELECT count(*) FROM "SystemMetrics"'),
        quarantined=_number(watched, 'SELECT count(*) FROM "QuarantinedFrame" WHERE NOT "stored"'),
    )


def _metrics(watched: Watched) -> dict[str, float]:
    """What guestd tells without labels, by name."""
    with urllib.request.urlopen(watched.metrics_url, timeout=5) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def _number(watched: Watched, select: str) -> int:
    row = watched.connection.execute(select.encode()).fetchone()
    return int(row[0] or 0) if row else 0


class Progress:
    """A block that is drawn anew on a terminal, and a line every few seconds anywhere else."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._first: Look | None = None
        self._last_line_seconds = 0.0
        self._drawn_lines = 0

    def show(self, now: Look) -> None:
        """Show how things stand; rates are those since the first look."""
        first = self._first = self._first or now
        if self._out.isatty():
            lines = self._block(now, first)
            up = f"\x1b[{self._drawn_lines}A\x1b[J" if self._drawn_lines else ""
            self._drawn_lines = len(lines)
            print(up + "\n".join(lines), file=self._out, flush=True)
        elif now.moment_seconds >= self._last_line_seconds + LINE_SECONDS:
            self._last_line_seconds = now.moment_seconds
            print(self._headline(now, first), file=self._out, flush=True)

    def _headline(self, now: Look, first: Look) -> str:
        rows = sum(now.rows.values())
        seconds = now.moment_seconds - first.moment_seconds
        return (
            f"{seconds:4.0f} s: {rows:,} rows, {_rate(rows - sum(first.rows.values()), seconds)} rows/s, "
            f"frames in the spool: {now.spool_frames}, newest sample {now.newest_age_seconds:.1f} s old"
        )

    def _block(self, now: Look, first: Look) -> list[str]:
        seconds = now.moment_seconds - first.moment_seconds
        return [self._headline(now, first), *_table(now.rows, first.rows, seconds)]


def report(first: Look, now: Look) -> None:
    """Print what every table holds and how fast it grew between two looks."""
    seconds = now.moment_seconds - first.moment_seconds
    print(f"\nIn the database after {seconds:.0f} s; its newest sample is {now.newest_age_seconds:.1f} s old:\n")
    print("\n".join(_table(now.rows, first.rows, seconds)))


def _table(rows: Mapping[str, int], before: Mapping[str, int], seconds: float) -> list[str]:
    # an inventory's rows are things and not samples: no rate
    rates = {table: _rate(rows[table] - before[table], seconds) for table in SERIES} | dict.fromkeys(INVENTORIES, "-")
    return [
        f"  {'table':<24}{'rows':>10}{'rows/s':>10}",
        *(f"  {table:<24}{rows[table]:>10,}{rate:>10}" for table, rate in rates.items()),
    ]


def report_machine(connection: Connection, machine_id: UUID, called: str) -> None:
    """Print a machine's newest sample, with the processes and ports that came in the same message."""
    with connection.cursor(row_factory=dict_row) as cursor:
        newest = 'SELECT * FROM "SystemMetrics" WHERE "machineId" = %s ORDER BY "timestamp" DESC LIMIT 1'
        sample = cursor.execute(newest, [machine_id]).fetchone()
        assert sample is not None, "the demo waits for it"
        key = [machine_id, sample["timestamp"]]
        by_message = 'WHERE "machineId" = %s AND "timestamp" = %s'
        processes = cursor.execute(f'SELECT * FROM "ProcessSnapshot" {by_message}', key).fetchall()
        ports = cursor.execute(f'SELECT * FROM "PortUsage" {by_message} AND "isListening"', key).fetchall()
    print(f"\n{called}, as its own agent reported it at {sample['timestamp']:%H:%M:%S} UTC:\n")
    for name, text in _system(sample):
        print(f"  {name:<10}{text}")
    print(f"  {'listening':<10}{_listening(ports)}\n")
    print("\n".join(_busiest(processes)))


def _system(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    cores = sample["cpuCoresUsage"]
    load = sample["loadAverage"]
    return [
        ("CPU", f"{sample['cpuUsagePercent']:.1f} % of {len(cores)} cores, load {_load(load)}"),
        ("memory", f"{_gib(sample['usedMemoryKB'])} of {_gib(sample['totalMemoryKB'])} GiB in use"),
        *(
            ("disk", f"{disk['usedGB']:.1f} of {disk['totalGB']:.1f} GiB in use on {disk['mountPoint']}")
            for disk in sample["diskUsageStats"]
        ),
    ]


def _busiest(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"  {'pid':>8}  {'CPU %':>6}  {'memory':>9}  process ({len(processes)} in all)"]
    order = sorted(processes, key=lambda process: (-process["cpuUsagePercent"], -process["memoryUsageKB"]))
    for process in order[:BUSIEST_PROCESSES]:
        cpu, memory = f"{process['cpuUsagePercent']:.1f}", f"{process['memoryUsageKB'] / 1024:,.1f} M"
        program, *arguments = (process["commandLine"] or process["name"]).split(" ")
        command = _shown(" ".join([PurePath(program).name, *arguments]))
        lines.append(f"  {process['processId']:>8}  {cpu:>6}  {memory:>9}  {command}")
    return lines


def _listening(ports: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({(port["port"], port["protocol"].lower(), port["processName"] or "unknown") for port in ports})
    texts = [f"{number}/{protocol} {_shown(name)}" for number, protocol, name in names]
    more = [f"and {len(texts) - MOST_PORTS} more"] if len(texts) > MOST_PORTS else []
    return ", ".join(texts[:MOST_PORTS] + more) or "nothing"


def _shown(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:70]


def _load(load: Mapping[str, float] | None) -> str:
    return "unknown" if load is None else f"{load['load1min']:.2f} {load['load5min']:.2f} {load['load15min']:.2f}"


def _gib(kib: int) -> str:
    return f"{kib / KIB_PER_GIB:.1f}"


def _rate(rows: int, seconds: float) -> str:
    return f"{rows / seconds:,.0f}" if seconds > 0 else "-"


def note(text: str) -> None:
    """Say on stdout what the demo does now."""
    print(f"demo: {text}", flush=True)


def complain(text: str) -> None:
    """Say on stderr why it failed."""
    print(f"demo: {text}", file=sys.stderr, flush=True)
