"""`guestd simulate`: a fleet of simulated guests."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from guestd.cli.arguments import DAY_SECONDS, add_verb, number, path, text, whole_number
from guestd.cli.broker_arguments import add_broker_options, read_broker, reject_unused_options

if TYPE_CHECKING:
    from guestd.cli.arguments import Subparsers

# More than a host, or a guest, has.
MOST_GUESTS = MOST_PROCESSES = 100_000

DESCRIPTION = """\
Simulates guests that report what real machines report: servers, workstations, and one Windows machine in five. With
--directory each guest has its own unix socket, DIRECTORY/<machine id>.socket, as QEMU makes them; with --mqtt all
guests share one connection to a broker. Messages are numbered and kept until they are acknowledged, so none is lost
while guestd is down. The same seed gives the same guests. guestd collects only machines that are in the store: add
their ids there first.
"""
EPILOG = """\
examples:
  guestd simulate --directory run/channels --guests 50 --interval 5
  guestd simulate --directory run/channels --guests 20 --interval 0 --count 500 --manifest sent.jsonl
  guestd simulate --mqtt 127.0.0.1:1883 --mqtt-user simulator --mqtt-password-file FILE --guests 50

manifest, one JSON object a guest: machine (id), boot_id, sent, acknowledged, given_up (messages dropped because the
buffer was full), unconfirmed (the same, but they had been sent: they may have arrived), timestamps_ms (of the messages,
with --count)

exit status: 0 done, or stopped by a signal; 1 stopped before --count was reached, or a socket cannot be served;
2 wrong usage; 78 an option names a file or an address that cannot be used
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers,
        "simulate",
        summary="simulate a fleet of guests, for demos and load tests",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--directory", type=path, metavar="DIR", help="make the guests' sockets in this directory")
    target.add_argument("--mqtt", type=text, metavar="HOST[:PORT]", help="publish to this broker instead")
    add_broker_options(parser)
    add = parser.add_argument
    add("--guests", type=whole_number(1, MOST_GUESTS), default=10, metavar="N", help="number of guests (default: 10)")
    interval_help = "time between two messages of a guest; 0: as fast as they are acknowledged (default: 10)"
    add("--interval", type=number(0, DAY_SECONDS), default=10.0, metavar="SECONDS", help=interval_help)
    add(
        "--processes",
        type=whole_number(1, MOST_PROCESSES),
        default=100,
        metavar="P",
        help="processes in each message (default: 100)",
    )
    add(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=1,
        metavar="K",
        help="another seed gives other machines (default: 1)",
    )
    first_help = "number of the first guest, so that several simulators can share a seed (default: 0)"
    add("--first-id", type=whole_number(0, 2**31 - 1), default=0, metavar="N", help=first_help)
    count_help = "stop when M messages of each guest are acknowledged (default: run until a signal)"
    add("--count", type=whole_number(1, 2**63 - 1), metavar="M", help=count_help)
    manifest_help = "at the end, write one JSON line a guest: what was sent and what was acknowledged"
    add("--manifest", type=path, metavar="FILE", help=manifest_help)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Simulate until the count is reached or a signal comes; returns the exit status."""
    from guestd.simulator.fleet import Fleet
    from guestd.simulator.run import run as run_simulator

    reject_unused_options(arguments)
    fleet = Fleet(
        target=arguments.directory or read_broker(arguments),
        guests=arguments.guests,
        interval_seconds=arguments.interval,
        processes=arguments.processes,
        seed=arguments.seed,
        first=arguments.first_id,
        count=arguments.count,
    )
    return run_simulator(fleet, arguments.manifest)
