"""`guestd plan`: what guestd would do on this host."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from guestd.cli.arguments import add_config_option, add_json_option, add_verb, read_settings
from guestd.cli.steps import JSON_HELP, plan_filter_steps, print_steps, require_libvirt

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

DESCRIPTION = """\
Compares the VMs and network filters of this host with their desired state in the database, and prints what a guestd
that starts now would do: rows to write, VMs to start or stop, filters to define or remove, what is held and how to
confirm it, and what else needs manual action. It changes nothing.
"""
EPILOG = f"""\
examples:
  guestd plan --config /etc/guestd/guestd.toml
  guestd plan --json | jq -r '.[] | select(.step == "Report") | .text'

{JSON_HELP}
exit status: 0 printed, 1 libvirt or the store cannot be reached, 2 wrong usage, 78 the configuration must be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "plan",
        summary="print what guestd would do to VMs and filters; does nothing",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_config_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; returns the exit status."""
    from guestd.vms import service as vms_service

    settings = read_settings(arguments)
    require_libvirt(settings)
    found = asyncio.run(vms_service.preview_plan(settings))
    filter_steps = plan_filter_steps(settings)
    held = vms_service.list_held(found)
    print_steps([*found.writes, *found.actions, *found.reports, *held, *filter_steps], as_json=arguments.json)
    return 0
