"""`guestd apply`: reconciles this host's filters once, now."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from guestd.cli.arguments import EXIT_FAILURE, add_config_option, add_json_option, add_verb, read_settings, text
from guestd.cli.steps import describe_step, require_libvirt
from guestd.core.errors import ConfigError

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers
    from guestd.core.config import Settings

DESCRIPTION = """\
Reconciles the network filters and interfaces of this host with the database once, now, and prints each step with its
result. Two kinds of steps need an explicit option, because they may take rules from machines that rely on them.
With --filters it applies exactly the plan that guestd plan printed with this digest, or no step on filters at all.
With --vms it only confirms the changes of VMs that guestd holds, which the running guestd then makes.
"""
EPILOG = """\
examples:
  guestd plan --config /etc/guestd/guestd.toml     # read the plan first
  guestd apply --config /etc/guestd/guestd.toml
  guestd apply --config /etc/guestd/guestd.toml --filters 8d1f02c7b35e # the digest that guestd plan prints
  guestd apply --config /etc/guestd/guestd.toml --vms 3f29c1d0a4be     # the same for VMs

--json prints one object:
  done      array of steps that were tried: step, text, result ("done", or the error), and the fields of the step
  reports   array of what needs manual action: step, text, and the fields of the report
  in_force  number of filters that are in libvirt as the database defines them
  desired   number of filters that the database defines for this host
With --vms it prints one object with confirmed: an array of the changes that were confirmed.

exit status: 0 all is done, 1 a step failed or needs --filters, the plan or the changes of VMs are not those of the
digest, or libvirt or the store cannot be reached, 2 wrong usage, 78 the configuration must be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "apply",
        summary="reconcile this host's network filters once, now",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_config_option(parser)
    filters_help = "apply the held plan of filters that guestd plan prints with this digest, and no other"
    confirm = parser.add_mutually_exclusive_group()
    confirm.add_argument("--filters", type=text, metavar="DIGEST", help=filters_help)
    take_help = "replace the filter of interfaces that name another program's filter"
    parser.add_argument("--take", action="store_true", help=take_help)
    vms_help = "confirm the held changes of VMs that guestd plan prints with this digest; touches no filter"
    confirm.add_argument("--vms", type=text, metavar="DIGEST", help=vms_help)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reconcile once; returns the exit status."""
    from guestd.cli.terminal import make_console, print_json, print_line
    from guestd.filters import service as filters_service

    settings = read_settings(arguments)
    require_libvirt(settings)
    if arguments.vms is not None:
        return _confirm_vms(settings, arguments.vms, as_json=arguments.json)
    if arguments.take and settings.filters.attach != "enforce":
        raise ConfigError('--take replaces the filters of interfaces: set filters.attach = "enforce" first')
    outcome = asyncio.run(filters_service.run_once(settings, confirmed=arguments.filters, may_take_over=arguments.take))
    if arguments.json:
        done = [describe_step(action) | {"result": result} for action, result in outcome.steps]
        reports = [describe_step(report) for report in outcome.reports]
        print_json({"done": done, "reports": reports, "in_force": outcome.in_force, "desired": outcome.desired})
    else:
        console = make_console()
        for action, result in outcome.steps:
            print_line(console, str(action) if result == "done" else f"failed: {action}: {result}")
        for report in outcome.reports:
            print_line(console, str(report))
        print_line(console, f"{outcome.in_force} of {outcome.desired} filters are in force")
    return EXIT_FAILURE if outcome.held or any(result != "done" for _, result in outcome.steps) else 0


def _confirm_vms(settings: Settings, digest: str, *, as_json: bool) -> int:
    from guestd.cli.terminal import make_console, print_json, print_line
    from guestd.vms import service as vms_service

    confirmed = asyncio.run(vms_service.confirm_held(settings, digest))
    if as_json:
        print_json({"confirmed": [describe_step(action) for action in confirmed]})
    else:
        console = make_console()
        for action in confirmed:
            print_line(console, f"confirmed: {action}")
        if not confirmed:
            print_line(console, "nothing confirmed: the held changes are not the ones that were shown; see guestd plan")
    return 0 if confirmed else EXIT_FAILURE
