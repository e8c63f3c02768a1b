"""`guestd top`: all machines, refreshed."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from guestd.cli.arguments import (
    DAY_SECONDS,
    add_config_option,
    add_json_option,
    add_verb,
    number,
    read_settings,
    whole_number,
)
from guestd.cli.show import format_memory

if TYPE_CHECKING:
    from rich.console import Console

    from guestd.cli.arguments import Subparsers
    from guestd.cli.terminal import Table
    from gueststore.read_api import MachineNow

STATUS_CHARS, NAME_CHARS = 12, 60
MOST_ROUNDS = 1_000_000
# The title and the table's header.
HEADER_LINES = 2
_SORT_KEYS: dict[str, Callable[[MachineNow], Any]] = {
    "cpu": lambda machine: -(machine.cpu_percent or 0),
    "memory": lambda machine: -(machine.used_memory_kb or 0),
    "name": lambda machine: machine.name,
}

DESCRIPTION = """\
Prints all machines with their latest samples, sorted, and refreshes the table until it is interrupted. A terminal is
redrawn; a file or a pipe gets one table after the other.
"""
EPILOG = """\
examples:
  guestd top --config /etc/guestd/guestd.toml --sort memory
  guestd top --rounds 1 --json | jq -r '.machines[].name'

--json prints one object a line for each refresh: at, machines (array: id, name, internal_name, status, and of the
latest sample, null where there is none: at, cpu_percent, used_memory_kb, total_memory_kb, uptime_seconds)

exit status: 0 --rounds are over or interrupted, 1 the store cannot be reached, 2 wrong usage, 78 the configuration must
be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(subparsers, "top", summary="show all machines, refreshed", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--sort", choices=tuple(_SORT_KEYS), default="cpu", help="sort by this column (default: cpu)")
    add("--seconds", type=number(0.01, DAY_SECONDS), default=2.0, metavar="S", help="refresh interval (default: 2)")
    add(
        "--rounds",
        type=whole_number(1, MOST_ROUNDS),
        metavar="N",
        help="stop after N refreshes (default: until interrupted)",
    )
    add_config_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the machines until interrupted, or until `--rounds` are over; returns the exit status."""
    from guestd.cli.terminal import make_console

    console = make_console()
    show: Callable[[Console, argparse.Namespace], Coroutine[Any, Any, None]]
    if arguments.json:
        show = _print_as_json
    elif console.is_terminal and not console.is_dumb_terminal:
        show = _redraw
    else:
        show = _print_table
    with suppress(KeyboardInterrupt):
        asyncio.run(show(console, arguments))
    return 0


async def _print_as_json(_: Console, arguments: argparse.Namespace) -> None:
    from guestd.cli.terminal import print_json

    async for machines in _read_machines(arguments):
        print_json({"at": datetime.now(UTC), "machines": machines})


async def _print_table(console: Console, arguments: argparse.Namespace) -> None:
    from guestd.cli.terminal import print_line, print_table

    async for machines in _read_machines(arguments):
        print_line(console, _make_title(machines, arguments.sort))
        print_table(console, _make_table(machines))


async def _redraw(console: Console, arguments: argparse.Namespace) -> None:
    from guestd.cli.terminal import redraw

    with redraw(console) as show:
        async for machines in _read_machines(arguments):
            shown = machines[: console.height - HEADER_LINES]
            show(_make_title(machines, arguments.sort), _make_table(shown))


async def _read_machines(arguments: argparse.Namespace) -> AsyncIterator[Sequence[MachineNow]]:
    from guestd.store.connection import connection_to, translate_errors
    from gueststore import read_api

    rounds = 0
    async with connection_to(read_settings(arguments).store.dsn) as connection, translate_errors():
        while True:
            yield sorted(await read_api.read_machines(connection), key=_SORT_KEYS[arguments.sort])
            rounds += 1
            if rounds == arguments.rounds:
                return
            await asyncio.sleep(arguments.seconds)


def _make_title(machines: Sequence[MachineNow], sort: str) -> str:
    return f"{len(machines)} machines, by {sort}, {datetime.now(UTC):%H:%M:%S} UTC"


def _make_table(machines: Sequence[MachineNow]) -> Table:
    from guestd.cli.terminal import make_table

    now = datetime.now(UTC)
    table = make_table("CPU %", "memory", "age s", "status", "name", numbers=("CPU %", "memory", "age s"))
    for machine in machines:
        status, name = machine.status[:STATUS_CHARS], machine.name[:NAME_CHARS]
        if machine.at is None:
            table.add_row("-", "-", "-", status, name)
        else:
            age_seconds = max(0, round((now - machine.at).total_seconds()))
            table.add_row(f"{machine.cpu_percent:.1f}", format_memory(machine), str(age_seconds), status, name)
    return table
