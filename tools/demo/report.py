"""What the demo prints: its progress while it runs, and what the database holds at its end.

A terminal gets colours and a display that is redrawn; a pipe gets plain lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from tools.demo.snapshot import INVENTORIES, SERIES, Connection, Snapshot

from guestd.cli.terminal import BAD, Table, make_console, make_table, print_line, print_table

BUSIEST_PROCESSES = 8
MOST_PORTS = 6
# Between two lines of progress where no terminal is redrawn.
LINE_SECONDS = 5.0
BAR_COLUMNS = 60
INDENT = 2
KIB_PER_GIB = 1024 * 1024

Show = Callable[[Snapshot], None]


def print_note(text: str) -> None:
    """Print on stdout what the demo does now."""
    _print_lines(make_console(), ("demo:", "bold"), text)


def print_error(text: str) -> None:
    """Print on stderr why the demo failed."""
    _print_lines(make_console(sys.stderr), ("demo:", f"bold {BAD}"), text)


def _print_lines(console: Console, prefix: tuple[str, str], text: str) -> None:
    first, *others = text.splitlines()
    print_line(console, prefix, f" {first}")
    for line in others:
        print_line(console, line)


@contextmanager
def show_progress(first: Snapshot, seconds: float) -> Iterator[Show]:
    """Show snapshots for this long: a display that a terminal redraws, or a line every few seconds."""
    console = make_console()
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda now: live.update(_make_display(first, now, seconds), refresh=True)
    else:
        yield _make_line_printer(console, first)


def _make_line_printer(console: Console, first: Snapshot) -> Show:
    due_seconds = first.moment_seconds

    def show(now: Snapshot) -> None:
        nonlocal due_seconds
        if now.moment_seconds >= due_seconds:
            due_seconds = now.moment_seconds + LINE_SECONDS
            print_line(console, _make_headline(first, now))

    return show


def _make_display(first: Snapshot, now: Snapshot, seconds: float) -> Group:
    elapsed = now.moment_seconds - first.moment_seconds
    bar = ProgressBar(total=seconds, completed=min(elapsed, seconds), width=BAR_COLUMNS)
    table = _make_table(first, now)
    return Group(_make_headline(first, now), Padding(bar, (0, 0, 1, INDENT)), Padding(table, (0, 0, 0, INDENT)))


def _make_headline(first: Snapshot, now: Snapshot) -> str:
    rows = sum(now.rows.values())
    seconds = now.moment_seconds - first.moment_seconds
    return (
        f"{seconds:4.0f} s: {rows:,} rows, {_rate(rows - sum(first.rows.values()), seconds)} rows/s, "
        f"frames in the spool: {now.spool_frames}, newest sample {now.newest_age_seconds:.1f} s old"
    )


def report(first: Snapshot, now: Snapshot) -> None:
    """Print what every table holds and how fast it grew between two snapshots."""
    console, seconds = make_console(), now.moment_seconds - first.moment_seconds
    print_line(console)
    print_line(console, f"Tables after {seconds:.0f} s; the newest sample is {now.newest_age_seconds:.1f} s old:")
    print_line(console)
    print_table(console, _make_table(first, now), indent=INDENT)


def _make_table(first: Snapshot, now: Snapshot) -> Table:
    seconds = now.moment_seconds - first.moment_seconds
    table = make_table("table", "rows", "rows/s", numbers=("rows", "rows/s"))
    for name in (*SERIES, *INVENTORIES):
        # A row of an inventory is a thing and not a sample: it has no rate.
        rate = _rate(now.rows[name] - first.rows[name], seconds) if name in SERIES else "-"
        table.add_row(name, f"{now.rows[name]:,}", rate)
    return table


def report_machine(connection: Connection, machine_id: UUID, name: str) -> None:
    """Print a machine's newest sample, with the processes and ports of the same message."""
    with connection.cursor(row_factory=dict_row) as cursor:
        newest = 'SELECT * FROM "SystemMetrics" WHERE "machineId" = %s ORDER BY "timestamp" DESC LIMIT 1'
        sample = cursor.execute(newest, [machine_id]).fetchone()
        assert sample is not None, "the demo waits for it"
        key = [machine_id, sample["timestamp"]]
        by_message = 'WHERE "machineId" = %s AND "timestamp" = %s'
        processes = cursor.execute(f'SELECT * FROM "ProcessSnapshot" {by_message}', key).fetchall()
        ports = cursor.execute(f'SELECT * FROM "PortUsage" {by_message} AND "isListening"', key).fetchall()
    console = make_console()
    print_line(console)
    print_line(console, (name, "bold"), f", reported by its agent at {sample['timestamp']:%H:%M:%S} UTC:")
    print_line(console)
    for label, text in [*_describe_system(sample), ("listening", _describe_ports(ports))]:
        print_line(console, f"  {label:<10}{text}")
    print_line(console)
    print_table(console, _make_process_table(processes), indent=INDENT)


def _describe_system(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    cores = sample["cpuCoresUsage"]
    load = sample["loadAverage"]
    return [
        ("CPU", f"{sample['cpuUsagePercent']:.1f} % of {len(cores)} cores, load {_format_load(load)}"),
        ("memory", f"{_format_gib(sample['usedMemoryKB'])} of {_format_gib(sample['totalMemoryKB'])} GiB in use"),
        *(
            ("disk", f"{disk['usedGB']:.1f} of {disk['totalGB']:.1f} GiB in use on {disk['mountPoint']}")
            for disk in sample["diskUsageStats"]
        ),
    ]


def _make_process_table(processes: Sequence[Mapping[str, Any]]) -> Table:
    title = f"process ({len(processes)} in all)"
    table = make_table("pid", "CPU %", "memory", title, numbers=("pid", "CPU %", "memory"))
    order = sorted(processes, key=lambda process: (-process["cpuUsagePercent"], -process["memoryUsageKB"]))
    for process in order[:BUSIEST_PROCESSES]:
        cpu, memory = f"{process['cpuUsagePercent']:.1f}", f"{process['memoryUsageKB'] / 1024:,.1f} M"
        program, *arguments = (process["commandLine"] or process["name"]).split(" ")
        command = _make_printable(" ".join([PurePath(program).name, *arguments]))
        table.add_row(str(process["processId"]), cpu, memory, command)
    return table


def _describe_ports(ports: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({(port["port"], port["protocol"].lower(), port["processName"] or "unknown") for port in ports})
    texts = [f"{number}/{protocol} {_make_printable(name)}" for number, protocol, name in names]
    more = [f"and {len(texts) - MOST_PORTS} more"] if len(texts) > MOST_PORTS else []
    return ", ".join(texts[:MOST_PORTS] + more) or "nothing"


def _make_printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:70]


def _format_load(load: Mapping[str, float] | None) -> str:
    return "unknown" if load is None else f"{load['load1min']:.2f} {load['load5min']:.2f} {load['load15min']:.2f}"


def _format_gib(kib: int) -> str:
    return f"{kib / KIB_PER_GIB:.1f}"


def _rate(rows: int, seconds: float) -> str:
    return f"{rows / seconds:,.0f}" if seconds > 0 else "-"
