"""`guestd show MACHINE` and `guestd top`: what the store knows, for a terminal."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from guestd.core.config import Settings
from guestd.core.errors import RowsRejected, StoreUnavailable
from guestd.core.text import escape_to_ascii
from guestd.store.connection import connection_to, sorted_errors
from gueststore import read_api
from gueststore.read_api import MachineNow

LAST_HOUR = timedelta(hours=1)
LISTED = 10
# To the upper left corner, and clear from there on: what was drawn before is drawn over without a flicker.
_HOME, _CLEAR = "\x1b[H", "\x1b[J"
_SORTED_BY: dict[str, Callable[[MachineNow], Any]] = {
    "cpu": lambda machine: -(machine.cpu_percent or 0),
    "memory": lambda machine: -(machine.used_memory_kb or 0),
    "name": lambda machine: machine.name,
}


def show(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print one machine; returns the exit status."""
    return _with_errors(_show(settings.store.dsn, arguments.machine))


def top(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print all machines, again and again until interrupted or `--rounds` are over; returns the exit status."""
    try:
        return _with_errors(_top(settings.store.dsn, arguments))
    except KeyboardInterrupt:
        return 0


def _with_errors(looking: Coroutine[Any, Any, int]) -> int:
    try:
        return asyncio.run(looking)
    except (StoreUnavailable, RowsRejected) as exc:
        print(f"guestd: {exc}", file=sys.stderr)
        return 1


async def _show(dsn: str, wanted: str) -> int:
    async with connection_to(dsn) as connection, sorted_errors():
        found = await read_api.read_machines(connection, wanted)
        if len(found) != 1:
            print(f"guestd: {len(found)} machines are called {wanted!r}", file=sys.stderr)
            for each in found:
                print(f"  {each.id} {each.internal_name}", file=sys.stderr)
            return 1
        machine, now = found[0], datetime.now(UTC)
        print(
            f"{escape_to_ascii(machine.name)} ({escape_to_ascii(machine.internal_name)}, {machine.id}):"
            f" {escape_to_ascii(machine.status)}"
        )
        print(_latest(machine, now))
        window = (now - LAST_HOUR, now)
        for used in await read_api.read_top_processes(connection, *window, of=[machine.id], most=LISTED):
            print(f"  {used.cpu_percent:6.1f} % {used.memory_kb / 1024:8.0f} MiB  {escape_to_ascii(used.name)}")
        for port in await read_api.read_ports(connection, machine.id):
            process = escape_to_ascii(port.process_name or "it does not say whom")
            print(f"  {port.protocol} {port.port} opened by {process}")
        for change in await read_api.read_changes(connection, machine.id, most=LISTED):
            states = " -> ".join(escape_to_ascii(state) for state in (change.from_state, change.to_state) if state)
            print(f"  {change.at:%Y-%m-%d %H:%M:%S} {change.kind} {escape_to_ascii(change.name)}: {states}")
    return 0


def _latest(machine: MachineNow, now: datetime) -> str:
    if machine.at is None:
        return "no sample yet"
    ago = max(0, round((now - machine.at).total_seconds()))
    return f"{ago} s ago: CPU {machine.cpu_percent:.1f} %, memory {_memory(machine)}, up {machine.uptime_seconds} s"


def _memory(machine: MachineNow) -> str:
    return f"{(machine.used_memory_kb or 0) / 1024:.0f} of {(machine.total_memory_kb or 0) / 1024:.0f} MiB"


async def _top(dsn: str, arguments: argparse.Namespace) -> int:
    async with connection_to(dsn) as connection, sorted_errors():
        drawn = 0
        while True:
            machines = await read_api.read_machines(connection)
            # A terminal is drawn over; a file or a pipe gets one table after another.
            lines = shutil.get_terminal_size().lines if sys.stdout.isatty() else len(machines) + 2
            text = "\n".join(_table(machines, arguments.sort, lines - 2, datetime.now(UTC)))
            print(f"{_HOME}{text}{_CLEAR}" if sys.stdout.isatty() else text, flush=True)
            drawn += 1
            if drawn == arguments.rounds:
                return 0
            await asyncio.sleep(arguments.seconds)


def _table(machines: Sequence[MachineNow], by: str, most: int, now: datetime) -> Iterator[str]:
    yield f"{len(machines)} machines, by {by}, {now:%H:%M:%S} UTC"
    yield f"{'CPU %':>6} {'MEMORY':>20} {'AGE s':>8}  {'STATUS':<12} NAME"
    for machine in sorted(machines, key=_SORTED_BY[by])[:most]:
        shown = f"{escape_to_ascii(machine.status)[:12]:<12} {escape_to_ascii(machine.name)[:60]}"
        if machine.at is None:
            yield f"{'-':>6} {'-':>20} {'-':>8}  {shown}"
        else:
            age = max(0, round((now - machine.at).total_seconds()))
            yield f"{machine.cpu_percent:6.1f} {_memory(machine):>20} {age:8}  {shown}"
