"""The services of this machine: units of systemd on Linux, services on Windows, otherwise none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import structlog

from guestd.agent.payload import Service
from guestd.agent.processes import clean

# The sample waits for the answer: a later one is of no use.
SYSTEMCTL_SECONDS = 5.0
_SYSTEMCTL = ("systemctl", "list-units", "--type=service", "--all", "--output=json", "--no-pager")

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


class Unit(msgspec.Struct, frozen=True):
    """One entry of systemctl's list."""

    unit: str
    load: str
    active: str
    sub: str
    description: str = ""


def list_services() -> list[Service]:
    """All services; on Linux those that systemd knows, when it runs."""
    if sys.platform == "win32":
        return _windows_services()
    # What systemd's own sd_booted checks.
    if not Path("/run/systemd/system").is_dir():
        return []
    try:
        listing = subprocess.run(_SYSTEMCTL, capture_output=True, timeout=SYSTEMCTL_SECONDS, check=True).stdout
        return parse_services(listing)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as exc:
        _log.warning("systemctl failed: this sample has no services", error=str(exc))
        return []


def parse_services(listing: bytes) -> list[Service]:
    """The JSON of `systemctl list-units` as services, by name; units that exist only by being mentioned are left out.

    Raises msgspec.DecodeError when it is not such a list.
    """
    units = msgspec.json.decode(listing, type=list[Unit])
    loaded = [unit for unit in units if unit.load == "loaded"]
    return [_service(unit) for unit in sorted(loaded, key=lambda unit: unit.unit)]


def _service(unit: Unit) -> Service:
    return Service(
        name=unit.unit.removesuffix(".service"),
        display_name=unit.description or unit.unit,
        state=_state(unit),
        start_mode=None,
        status="Degraded" if unit.active == "failed" else "OK",
        process_id=None,
        path=None,
        description=unit.description or None,
    )


def _state(unit: Unit) -> str:
    match unit.active:
        case "active" | "reloading":
            # A one-shot unit that has ended counts as active in systemd and has no process.
            return "Stopped" if unit.sub == "exited" else "Running"
        case "activating":
            return "Start Pending"
        case "deactivating":
            return "Stop Pending"
        case _:
            return "Stopped"


if sys.platform == "win32":
    import psutil

    _START_MODE = {"automatic": "Auto", "manual": "Manual", "disabled": "Disabled"}

    def _windows_services() -> list[Service]:
        services = []
        for service in psutil.win_service_iter():
            try:
                known = service.as_dict()
            except psutil.NoSuchProcess:
                continue
            services.append(
                Service(
                    name=clean(known["name"]),
                    display_name=clean(known["display_name"]),
                    state=known["status"].replace("_", " ").title(),
                    start_mode=_START_MODE.get(known["start_type"]),
                    status="OK",
                    process_id=known["pid"],
                    path=clean(known["binpath"]),
                    description=clean(known["description"]) or None,
                )
            )
        return services
