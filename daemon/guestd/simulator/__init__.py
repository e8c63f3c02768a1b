"""`guestd simulate`: a fleet of believable guests on unix sockets or at a broker, the same for the same seed, for demos
and load.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import msgspec
import structlog

from guestd.agent.mqtt import Address, add_broker_arguments, broker_of
from guestd.agent.signals import until_signal
from guestd.simulator.fleet import Plan, RegisteredMachine, enlarge_descriptor_limit, live, open_fleet
from guestd.simulator.guest import machine_id

__all__ = ["add_arguments", "machine_ids", "run"]

DESCRIPTION = """\
Serves one unix socket per guest, DIRECTORY/<machine id>.socket, as QEMU does for a guest's channel, and
reports on each of them what a machine could report: servers, workstations, one Windows in five. The lines are
numbered and are kept until acknowledged, so nothing is lost while guestd is away or is killed.
"""
EPILOG = """\
examples:
  guestd simulate --directory run/channels --guests 50 --interval 5
  guestd simulate --directory run/channels --guests 20 --interval 0 --count 500 --manifest sent.jsonl
  guestd simulate --mqtt 127.0.0.1:1883 --mqtt-user simulator --mqtt-password-file FILE --guests 50
"""

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.simulator")


def machine_ids(guests: int, seed: int, first: int = 0) -> list[UUID]:
    """The machine ids of a fleet, in the order of its guests; the same for the same seed."""
    return [machine_id(number, seed) for number in range(first, first + guests)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `guestd simulate` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--directory", type=Path, metavar="DIR", help="where the sockets are made")
    way.add_argument("--mqtt", metavar="HOST[:PORT]", help="publish to this broker instead, over a few connections")
    add_broker_arguments(parser)
    add = parser.add_argument
    add("--guests", type=_at_least_one, default=10, metavar="N", help="how many (default: 10)")
    interval_help = "between two messages of a guest; 0: as fast as they are acknowledged (default: 10)"
    add("--interval", type=_seconds, default=10.0, metavar="SECONDS", help=interval_help)
    add("--processes", type=_at_least_one, default=100, metavar="P", help="in each message (default: 100)")
    add("--seed", type=int, default=1, metavar="K", help="another seed, other machines (default: 1)")
    first_help = "number of the first guest, so that several simulators share a seed (default: 0)"
    add("--first-id", type=_not_negative, default=0, metavar="N", help=first_help)
    count_help = "end when M messages of each guest are acknowledged (default: go on until SIGTERM)"
    add("--count", type=_at_least_one, metavar="M", help=count_help)
    manifest_help = "at the end, one JSON line per guest: what was sent and what is safe"
    add("--manifest", type=Path, metavar="FILE", help=manifest_help)


def run(arguments: argparse.Namespace) -> int:
    """Simulate until done or told to stop; 1 when a count was not reached or a socket cannot be served."""
    plan = Plan(
        way=arguments.directory or broker_of(arguments),
        guests=arguments.guests,
        interval_seconds=arguments.interval,
        processes=arguments.processes,
        seed=arguments.seed,
        first=arguments.first_id,
        count=arguments.count,
    )
    try:
        return asyncio.run(_simulate(plan, arguments.manifest))
    except OSError as exc:
        _log.error("cannot simulate", why=str(exc))
        return 1


async def _simulate(plan: Plan, manifest: Path | None) -> int:
    enlarge_descriptor_limit(plan.guests)
    with ExitStack() as open_:
        members = open_fleet(plan, open_)
        _log.info(
            "simulating", guests=plan.guests, to=plan.way.host if isinstance(plan.way, Address) else str(plan.way)
        )
        finished = await until_signal(live(members, plan))
    if manifest is not None:
        _write_manifest(manifest, members)
    _log.info("ended", finished=finished, sent=sum(member.sender.outbox.last for member in members))
    return 0 if finished or plan.count is None else 1


def _write_manifest(path: Path, members: list[RegisteredMachine]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(member.tally()) + b"\n" for member in members))


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more")
    return seconds
