"""`guestd simulate`: runs a fleet on unix sockets or at a broker until it is done or gets a signal."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import msgspec
import structlog

from guestd.agent.signals import run_until_signal
from guestd.simulator.fleet import Fleet, SimulatedGuest, open_fleet, raise_descriptor_limit, run_fleet

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.simulator")


def run(fleet: Fleet, manifest: Path | None) -> int:
    """Simulate; returns 1 when a message count was not reached or a socket cannot be served."""
    try:
        return asyncio.run(_run(fleet, manifest))
    except OSError as exc:
        _log.error(
            "simulation stopped: fix the socket or limit that the error names, then start it again", error=str(exc)
        )
        return 1


async def _run(fleet: Fleet, manifest: Path | None) -> int:
    raise_descriptor_limit(fleet.guests)
    with ExitStack() as open_:
        opened = open_fleet(fleet, open_)
        guests = opened.guests
        _log.info("simulation started", guests=fleet.guests, to=str(fleet.target))
        finished = await run_until_signal(run_fleet(opened, fleet))
    if manifest is not None:
        _write_manifest(manifest, guests)
    _log.info("simulation stopped", finished=finished, sent=sum(guest.sender.outbox.last for guest in guests))
    return 0 if finished or fleet.count is None else 1


def _write_manifest(path: Path, guests: list[SimulatedGuest]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(guest.summarise()) + b"\n" for guest in guests))
