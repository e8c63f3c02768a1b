"""`guestd show`: one machine, as the store has it."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from guestd.cli.arguments import EXIT_FAILURE, add_config_option, add_json_option, add_verb, read_settings, text

if TYPE_CHECKING:
    from rich.console import Console

    from guestd.cli.arguments import Subparsers
    from gueststore.read_api import Change, ListeningPort, MachineNow, ProcessUsage

LAST_HOUR = timedelta(hours=1)
LISTED = 10

DESCRIPTION = """\
Prints one machine as the store has it: its latest sample, the processes that used most CPU in the last hour, its
listening ports, and its latest changes of state.
"""
EPILOG = """\
examples:
  guestd show web1 --config /etc/guestd/guestd.toml
  guestd show 7e3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11 --json | jq .machine.cpu_percent

--json prints one object:
  machine    id, name, internal_name, status, and of the latest sample (null where there is none): at, cpu_percent,
             used_memory_kb, total_memory_kb, uptime_seconds
  processes  array: name, machines, cpu_percent, memory_kb
  ports      array: at, port, protocol, process_id, process_name, executable_path
  changes    array, the newest first: at, id, kind, name, from_state, to_state, reason

exit status: 0 printed, 1 no machine or several have this name, or the store cannot be reached, 2 wrong usage,
78 the configuration must be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "show",
        summary="show a machine: latest sample, processes, ports, changes",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("machine", type=text, metavar="MACHINE", help="id, internalName or name")
    add_config_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the machine; returns the exit status."""
    return asyncio.run(_run(read_settings(arguments).store.dsn, arguments))


async def _run(dsn: str, arguments: argparse.Namespace) -> int:
    from guestd.cli.terminal import make_console, print_error, print_json
    from guestd.store.connection import ROW_SECONDS, connection_to, store_deadline
    from gueststore import read_api

    async with connection_to(dsn) as connection, store_deadline(ROW_SECONDS):
        found = await read_api.read_machines(connection, arguments.machine)
        if len(found) != 1:
            ids = (f"{each.id} {each.internal_name}" for each in found)
            print_error(f"{len(found)} machines are called {arguments.machine!r}", *ids)
            return EXIT_FAILURE
        machine, now = found[0], datetime.now(UTC)
        window = (now - LAST_HOUR, now)
        processes = await read_api.read_top_processes(connection, *window, of=[machine.id], most=LISTED)
        ports = await read_api.read_ports(connection, machine.id)
        changes = await read_api.read_changes(connection, machine.id, most=LISTED)
    if arguments.json:
        print_json({"machine": machine, "processes": processes, "ports": ports, "changes": changes})
        return 0
    console = make_console()
    _print_machine(console, machine, now)
    _print_processes(console, processes)
    _print_ports(console, ports)
    _print_changes(console, changes)
    return 0


def _print_machine(console: Console, machine: MachineNow, now: datetime) -> None:
    from guestd.cli.terminal import print_line

    print_line(console, (machine.name, "bold"), f" ({machine.internal_name}, {machine.id}): {machine.status}")
    if machine.at is None:
        print_line(console, "no sample yet")
        return
    age_seconds = max(0, round((now - machine.at).total_seconds()))
    print_line(
        console,
        f"{age_seconds} s ago: CPU {machine.cpu_percent:.1f} %, memory {format_memory(machine)},"
        f" up {machine.uptime_seconds} s",
    )


def _print_processes(console: Console, processes: list[ProcessUsage]) -> None:
    from guestd.cli.terminal import make_table, print_table

    if processes:
        table = make_table("CPU %", "memory", "process", numbers=("CPU %", "memory"))
        for used in processes:
            table.add_row(f"{used.cpu_percent:.1f}", f"{used.memory_kb / 1024:.0f} MiB", used.name)
        print_table(console, table)


def _print_ports(console: Console, ports: list[ListeningPort]) -> None:
    from guestd.cli.terminal import make_table, print_table

    if ports:
        table = make_table("port", "protocol", "listening process", numbers=("port",))
        for port in ports:
            table.add_row(str(port.port), port.protocol, port.process_name or "unknown")
        print_table(console, table)


def _print_changes(console: Console, changes: list[Change]) -> None:
    from guestd.cli.terminal import make_table, print_table

    if changes:
        table = make_table("changed (UTC)", "kind", "name", "state")
        for change in changes:
            states = " -> ".join(state for state in (change.from_state, change.to_state) if state)
            at = f"{change.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
            table.add_row(at, change.kind, change.name, states)
        print_table(console, table)


def format_memory(machine: MachineNow) -> str:
    """Used and total memory of the latest sample."""
    return f"{(machine.used_memory_kb or 0) / 1024:.0f} of {(machine.total_memory_kb or 0) / 1024:.0f} MiB"
