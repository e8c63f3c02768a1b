"""`guestd filters show | plan | explain`: the rules that protect machines."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from guestd.cli.arguments import (
    EXIT_FAILURE,
    EXIT_USAGE,
    add_config_option,
    add_json_option,
    add_verb,
    read_settings,
    text,
)
from guestd.cli.steps import JSON_HELP, plan_filter_steps, print_steps, require_libvirt
from guestd.core.errors import ConfigError, SourceLost

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers
    from guestd.filters.desired import CompiledRows
    from guestd.filters.packet_match import PlacedRule
    from guestd.filters.snapshot import HostSnapshot, MachineRow

DESCRIPTION = """\
The network filters of machines, as the database defines them and libvirt applies them: the effective rules of a
machine, the steps that would bring libvirt in line, and the rule that decides on a connection.
"""
EPILOG = """\
examples:
  guestd filters show web1
  guestd filters plan --json
  guestd filters explain web1 tcp 10.0.0.5:443 in
"""
EXIT = """\
exit status: 0 printed, 1 no machine or several have this name, or the store cannot be reached, 2 wrong usage,
78 the configuration must be changed
"""
RULE = """\
  layer (packets: iptables, or frames: ebtables), priority, action, direction, protocol, matches (array: name, value,
  is_negated), is_stateful, filter, title (of the filter), chain
"""
SHOW = f"""\
--json prints one object: id and name of the machine, filter, rules (array, in the order in which they match),
problems (array of texts); each rule has
{RULE}
{EXIT}"""
EXPLAIN = f"""\
examples:
  guestd filters explain web1 tcp 10.0.0.5:443 in     may 10.0.0.5 connect to port 443 of web1?
  guestd filters explain web1 udp [2001:db8::1]:53 out
  guestd filters explain web1 icmp 10.0.0.5 in

--json prints one object: id and name of the machine, own_address (null where it has none of this IP version),
packets (array: packet, direction, verdict, rule), problems (array of texts); packet is "first packet", "answers" or
"later packets", verdict is "passes", "is dropped" or "is rejected", rule is null where none decides, or has
{RULE}
{EXIT}"""
PLAN = f"""\
{JSON_HELP}
exit status: 0 printed, 1 libvirt or the store cannot be reached, 2 wrong usage, 78 the configuration must be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb and its three verbs."""
    parser = add_verb(
        subparsers,
        "filters",
        summary="show, plan or explain the network filters of machines",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    show = add_verb(
        verbs,
        "show",
        summary="show the effective rules of a machine",
        description="Print the effective rules of a machine in the order in which they match, then their problems.",
        epilog=SHOW,
    )
    plan = add_verb(
        verbs,
        "plan",
        summary="print the steps on filters and interfaces; does nothing",
        description="Print what guestd would do to libvirt's filters and interfaces, and their problems.",
        epilog=PLAN,
    )
    explain = add_verb(
        verbs,
        "explain",
        summary="name the rule that decides on a connection",
        description="Print which rules decide on a connection: its first packet, the answers and what follows.",
        epilog=EXPLAIN,
    )
    for each in (show, explain):
        each.add_argument("machine", type=text, metavar="MACHINE", help="id, internalName or name")
    explain.add_argument("protocol", choices=("tcp", "udp", "sctp", "icmp", "arp"))
    explain.add_argument(
        "peer", type=text, metavar="ADDRESS[:PORT]", help="address of the peer, and the destination port"
    )
    explain.add_argument("direction", choices=("in", "out"), help="direction of the connection, as the machine sees it")
    for each, verb in ((show, _show), (plan, _plan), (explain, _explain)):
        add_config_option(each)
        add_json_option(each)
        each.set_defaults(run=verb)


def _plan(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    require_libvirt(settings)
    print_steps(plan_filter_steps(settings), as_json=arguments.json)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from guestd.cli.terminal import make_console, print_json, print_line
    from guestd.filters import explain

    if (found := _read_machine(arguments)) is None:
        return EXIT_FAILURE
    compiled, machine, unfiltered, failures = found
    if not arguments.json:
        console = make_console()
        for line in (*unfiltered, *explain.describe_rules(compiled, machine), *failures):
            print_line(console, line)
        return 0
    top = compiled.machine_filters[machine.id]
    rules = [_describe_rule(each, compiled.titles) for each in explain.list_rules(compiled, machine) or ()]
    problems = [*unfiltered, *explain.list_problems(compiled, machine), *failures]
    print_json({"id": machine.id, "name": machine.name, "filter": top.name, "rules": rules, "problems": problems})
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from guestd.cli.terminal import make_console, print_error, print_json, print_line
    from guestd.filters import explain

    try:
        question = explain.parse_question(arguments.protocol, arguments.peer, arguments.direction)
    except ValueError as exc:
        print_error(str(exc))
        return EXIT_USAGE
    if (found := _read_machine(arguments)) is None:
        return EXIT_FAILURE
    compiled, machine, unfiltered, failures = found
    if not arguments.json:
        console = make_console()
        for line in (*unfiltered, *explain.explain_connection(compiled, machine, question), *failures):
            print_line(console, line)
        return 0
    packets = [
        {
            "packet": each.packet,
            "direction": each.direction,
            "verdict": each.verdict,
            "unknown": each.unknown or None,
            "rule": None if each.rule is None else _describe_rule(each.rule, compiled.titles),
        }
        for each in explain.list_verdicts(compiled, machine, question)
    ]
    own_address = explain.find_own_address(machine, question)
    problems = [*unfiltered, *explain.list_problems(compiled, machine), *failures]
    described = {"id": machine.id, "name": machine.name, "own_address": own_address}
    print_json(described | {"packets": packets, "problems": problems})
    return 0


def _read_machine(arguments: argparse.Namespace) -> tuple[CompiledRows, MachineRow, list[str], list[str]] | None:
    """The compiled filters, the machine that is named, its interfaces on this host that do not name its filter, and
    what hosts could not apply of its filters.

    None, and an error on stderr, where it is not exactly one machine.
    """
    from guestd.cli.terminal import print_error
    from guestd.filters import desired, explain
    from guestd.filters.store import read_problems, read_store_snapshot

    settings = read_settings(arguments)
    snapshot = asyncio.run(read_store_snapshot(settings.store.dsn))
    host = _observe_host(settings.libvirt.uri)
    rows = desired.add_static_ips(snapshot, {} if host is None else host.static_ips)
    try:
        machine = explain.find_machine(rows.machines, arguments.machine)
    except ValueError as exc:
        print_error(str(exc))
        return None
    compiled = desired.compile_rows(rows)
    failures = asyncio.run(read_problems(settings.store.dsn, explain.list_filters(compiled, machine)))
    top = compiled.machine_filters[machine.id].name
    unfiltered = explain.list_unfiltered(() if host is None else host.interfaces, machine, top)
    return compiled, machine, unfiltered, list(explain.describe_failures(compiled, machine, failures))


def _describe_rule(placed: PlacedRule, titles: Mapping[str, str]) -> dict[str, Any]:
    rule = placed.rule
    return {
        "layer": "frames" if rule.is_link else "packets",
        "priority": rule.priority,
        "action": rule.action,
        "direction": rule.direction,
        "protocol": rule.protocol,
        "matches": msgspec.to_builtins(rule.matches),
        "is_stateful": rule.is_stateful,
        "filter": placed.filter.name,
        "title": titles.get(placed.filter.name),
        "chain": placed.filter.chain,
    }


def _observe_host(uri: str) -> HostSnapshot | None:
    """This host's libvirt; None, with a note, where it cannot be read."""
    from guestd.cli.terminal import print_error
    from guestd.filters import driver

    try:
        host = asyncio.run(driver.observe_host(uri)) if uri else None
    except (SourceLost, ConfigError) as exc:
        print_error(
            f"libvirt's networks are left out, their addresses and the filters of interfaces are unknown: {exc}"
        )
        return None
    for each in () if host is None else host.skipped:
        print_error(f"libvirt's {each.kind} {each.name} cannot be read, its addresses are unknown: {each.reason}")
    return host
