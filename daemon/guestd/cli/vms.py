"""`guestd vms release`: deletes the lease of a machine that runs nowhere."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC
from typing import TYPE_CHECKING

from guestd.cli.arguments import EXIT_FAILURE, add_config_option, add_json_option, add_verb, read_settings, text

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

DESCRIPTION = """\
A lease (a row of MachineLease) names the host that runs a machine, or may run it: no other host starts it. guestd gives
a lease back when libvirt reports how the domain ended; a person releases the one of a host that cannot report it.
"""
RELEASE_DESCRIPTION = """\
Shows which host has the lease of a machine, and since when. With --lease it deletes exactly the lease that was shown,
so that the host to which the machine is assigned may start it. Two QEMUs on one disk destroy it: first make certain
that the machine runs nowhere. Look on that host with virsh list; if the host is dead, make certain that it is off.
"""
RELEASE_EPILOG = """\
examples:
  guestd vms release vm-web-1                        # the host, and the command that releases exactly this lease
  guestd vms release vm-web-1 --lease 3f29c1d0a4be

MACHINE is Machine.internalName, the name of its domain. The daemon's own role of the database may do this.

--json prints one object: machine (its ID), name, host, taken_at, domain_uuid, lease (the digest), released (true or
false)

exit status: 0 printed or released, 1 no such lease, it is another one now, or the store cannot be reached,
2 wrong usage, 78 the configuration must be changed
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb and its verb."""
    parser = add_verb(
        subparsers,
        "vms",
        summary="release the lease of a machine that runs nowhere",
        description=DESCRIPTION,
        epilog="examples:\n  guestd vms release vm-web-1\n",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    release = add_verb(
        verbs,
        "release",
        summary="show the lease of a machine, and release it",
        description=RELEASE_DESCRIPTION,
        epilog=RELEASE_EPILOG,
    )
    release.add_argument("machine", type=text, metavar="MACHINE", help="Machine.internalName")
    release.add_argument(
        "--lease", type=text, metavar="DIGEST", help="release the lease that was shown with this digest"
    )
    add_config_option(release)
    add_json_option(release)
    release.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show or release a lease; returns the exit status."""
    from guestd.cli.terminal import make_console, print_error, print_json, print_line
    from guestd.vms import lease_release

    settings = read_settings(arguments)
    found = asyncio.run(lease_release.release_lease(settings.store.dsn, arguments.machine, arguments.lease))
    if found is None:
        print_error(f"no host has a lease of a machine whose internalName is {arguments.machine!r}")
        return EXIT_FAILURE
    lease, is_released = found
    taken_at = lease.taken_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if arguments.json:
        described = {
            "machine": lease.machine_id, "name": lease.name, "host": lease.host_name, "taken_at": lease.taken_at,
            "domain_uuid": lease.domain_uuid, "lease": lease.digest, "released": is_released,
        }  # fmt: skip
        print_json(described)
    else:
        console = make_console()
        print_line(console, f"{lease.name}: host {lease.host_name} has its lease since {taken_at}")
        if is_released:
            print_line(console, "released")
        elif arguments.lease is None:
            command = f"guestd vms release {lease.name} --lease {lease.digest}"
            print_line(console, f"if it runs nowhere, release exactly this lease: {command}")
        else:
            print_line(console, "not released: this is not the lease that was shown; look again where it runs")
    return 0 if is_released or arguments.lease is None else EXIT_FAILURE
