"""`guestd vms release`: deletes the lease of a machine that runs nowhere."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC
from typing import TYPE_CHECKING

from guestd.cli.arguments import EXIT_FAILURE, add_config_option, add_json_option, add_verb, read_settings, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guestd.cli.arguments import Subparsers
    from guestd.vms.lease_release import ShownLease

DESCRIPTION = """\
A lease (a row of MachineLease) names the host that runs a machine, or may run it: no other host starts it. guestd gives
a lease back when libvirt reports how the domain ended; a person releases the one of a host that cannot report it.
"""
RELEASE_DESCRIPTION = """\
Shows which host has the lease of a machine, since when, whether that host reports, and the last known state of the
domain. With --lease it deletes exactly the lease that was shown, so that the host to which the machine is assigned may
start it; but not while the host that has the lease reports that the machine runs there. Two QEMUs on one disk destroy
it: first make certain that the machine runs nowhere. Look on that host with virsh list; if the host is dead, make
certain that it is off.
"""
RELEASE_EPILOG = """\
examples:
  guestd vms release vm-web-1                        # the host, and the command that releases exactly this lease
  guestd vms release vm-web-1 --lease 3f29c1d0a4be

MACHINE is Machine.internalName, the name of its domain. The daemon's own role of the database may do this.

--json prints one object: machine (its ID), name, host, taken_at, domain_uuid, host_reports (within 60 s), assigned (the
machine is assigned to this host), state (of the domain, as the host to which it is assigned last observed it, or null),
runs_there, lease (the digest), released

exit status: 0 printed or released, 1 no such lease, it is another one now, the machine runs there, or the store cannot
be reached, 2 wrong usage, 78 the configuration must be changed
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
    if arguments.json:
        described = {
            "machine": lease.machine_id, "name": lease.name, "host": lease.host_name, "taken_at": lease.taken_at,
            "domain_uuid": lease.domain_uuid, "host_reports": lease.is_host_live, "assigned": lease.is_assigned,
            "state": lease.state, "runs_there": lease.runs_there, "lease": lease.digest, "released": is_released,
        }  # fmt: skip
        print_json(described)
    else:
        console = make_console()
        for line in _describe(lease, arguments.lease, is_released=is_released):
            print_line(console, line)
    return 0 if is_released or arguments.lease is None else EXIT_FAILURE


def _describe(lease: ShownLease, digest: str | None, *, is_released: bool) -> Iterator[str]:
    """Describe a lease in lines, and what was done or can be done with it."""
    taken_at = lease.taken_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    yield f"{lease.name}: host {lease.host_name} has its lease since {taken_at}"
    yield "this host reports" if lease.is_host_live else "this host has not reported for 60 s: it may still run it"
    whose = "" if lease.is_assigned else ", on another host, to which the machine is assigned"
    yield f"last known state of the domain{whose}: {lease.state or 'none'}"
    if is_released:
        yield "released"
    elif lease.runs_there:
        yield "not released: it runs there; shut it down there, and its host gives the lease back by itself"
    elif digest is None:
        command = f"guestd vms release {lease.name} --lease {lease.digest}"
        yield f"if it runs nowhere, release exactly this lease: {command}"
    else:
        yield "not released: this is not the lease that was shown, or it runs there now; look again where it runs"
