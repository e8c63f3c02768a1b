"""The services of this machine: units of systemd on Linux, services on Windows, otherwise none."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from guestd.agent.payload import Service, clean

# The sample waits for the answer: a later one is of no use.
SYSTEMCTL_SECONDS = 5.0
# Several thousand units.
LONGEST_LISTING_BYTES = 4 * 1024 * 1024
_SYSTEMCTL = ("systemctl", "list-units", "--type=service", "--all", "--output=json", "--no-pager")


class SystemctlFailed(Exception):
    """systemctl ended with an error, too late or with too much."""


class Unit(msgspec.Struct, frozen=True):
    """One entry of systemctl's list."""

    unit: str
    load: str
    active: str
    sub: str
    description: str = ""


def list_services() -> list[Service]:
    """All services; on Linux those that systemd knows, when it runs.

    Raises SystemctlFailed, OSError, msgspec.DecodeError.
    """
    if sys.platform == "win32":
        return _windows_services()
    # What systemd's own sd_booted checks.
    if not Path("/run/systemd/system").is_dir():
        return []
    return parse_services(run_command(_SYSTEMCTL, SYSTEMCTL_SECONDS, LONGEST_LISTING_BYTES))


def run_command(command: Sequence[str], seconds: float, limit_bytes: int) -> bytes:
    """What a command prints. Raises SystemctlFailed when it fails, takes longer or prints more; it is killed then."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            printed = process.stdout.read(limit_bytes + 1) if process.stdout is not None else b""
            if len(printed) > limit_bytes:
                raise SystemctlFailed(f"more than {limit_bytes} bytes")
            if status := process.wait():
                reason = f"no answer within {seconds:g} s" if status == -signal.SIGKILL else f"exit status {status}"
                raise SystemctlFailed(reason)
        finally:
            timer.cancel()
            process.kill()
    return printed


def parse_services(listing: bytes) -> list[Service]:
    """The JSON of `systemctl list-units` as services, by name; units that exist only by being mentioned are left out.

    So is a unit that lacks a field. Raises msgspec.DecodeError when it is not such a list.
    """
    loaded = []
    for entry in msgspec.json.decode(listing.decode(errors="replace"), type=list[msgspec.Raw]):
        with suppress(msgspec.DecodeError):
            unit = msgspec.json.decode(entry, type=Unit)
            if unit.load == "loaded":
                loaded.append(unit)
    return [_service(unit) for unit in sorted(loaded, key=lambda unit: unit.unit)]


def _service(unit: Unit) -> Service:
    return Service(
        name=clean(unit.unit.removesuffix(".service")),
        display_name=clean(unit.description or unit.unit),
        state=_state(unit),
        start_mode=None,
        status="Degraded" if unit.active == "failed" else "OK",
        process_id=None,
        path=None,
        description=clean(unit.description) if unit.description else None,
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
            except (psutil.Error, OSError):  # removed meanwhile, or denied
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
