"""What libvirt says of a virtual machine, as plain values; and which word of Machine.status that is.

Pure. libvirt's numbers become its own words here, and a domain's XML the few facts that are kept of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID
from xml.etree import ElementTree

# libvirt's virDomainState, and the reasons of those states whose reason matters; the place in the list is the number.
STATES = ("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")
_REASONS = {
    "running": (
        "unknown", "booted", "migrated", "restored", "from_snapshot", "unpaused", "migration_cancelled",
        "save_cancelled", "wakeup", "crashed", "postcopy", "postcopy_failed",
    ),
    "paused": (
        "unknown", "user", "migration", "save", "dump", "io_error", "watchdog", "from_snapshot", "shutting_down",
        "snapshot", "crashed", "starting_up", "postcopy", "postcopy_failed", "api_error",
    ),
    "shutoff": (
        "unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from_snapshot", "daemon",
    ),
    "crashed": ("unknown", "panicked"),
}  # fmt: skip

# The paused are told apart by their reason; the rest (shutdown is on its way, nostate) is for nobody to say.
_STATUSES = {
    "running": "running",
    "blocked": "running",
    "pmsuspended": "suspended",
    "shutoff": "off",
    "crashed": "error",
}
# Somebody is in the middle of something: what comes of it is not known yet.
_TRANSIENT_PAUSES = frozenset(
    {"migration", "save", "dump", "shutting_down", "snapshot", "starting_up", "postcopy"}
)  # fmt: skip
_FAILED_PAUSES = frozenset({"io_error", "watchdog", "crashed", "postcopy_failed"})


@dataclass(frozen=True, slots=True)
class DomainChannel:
    """A virtio-serial port: its name in the guest, the unix socket that QEMU serves, whether the guest has it open.

    `path` is None while libvirt has not chosen one; `is_open` is None while the domain is off.
    """

    name: str
    path: str | None
    is_open: bool | None


@dataclass(frozen=True, slots=True)
class Graphics:
    """Where the screen is: spice or vnc, TCP port (-1 for none), the address it listens on."""

    protocol: str | None
    port: int
    host: str | None


@dataclass(frozen=True, slots=True)
class DomainDescription:
    """What is kept of a domain's XML."""

    vcpus: int
    memory_kib: int
    graphics: Graphics | None
    channels: tuple[DomainChannel, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """A virtual machine as libvirt knows it. `since` is the monotonic second in which this state was first seen."""

    uuid: UUID
    name: str
    state: str
    reason: str
    is_active: bool
    since: float
    description: DomainDescription


def name_state(state: int, reason: int) -> tuple[str, str]:
    """libvirt's numbers as (state, reason); a number that is newer than this list is nostate, or unknown."""
    name = STATES[state] if 0 <= state < len(STATES) else "nostate"
    reasons = _REASONS.get(name, ())
    return name, reasons[reason] if 0 <= reason < len(reasons) else "unknown"


def derive_status(domain: Domain) -> str | None:
    """The word of Machine.status for what is seen; None while that is for nobody to say."""
    if domain.state == "paused":
        if domain.reason in _TRANSIENT_PAUSES:
            return None
        return "error" if domain.reason in _FAILED_PAUSES else "suspended"
    if (domain.state, domain.reason) == ("shutoff", "migrated"):
        # It runs elsewhere now, and whoever has it says how it is.
        return None
    return _STATUSES.get(domain.state)


def parse_description(xml: str) -> DomainDescription:
    """The facts in a domain's XML, live or defined; what is not in there is 0, None or empty."""
    root = ElementTree.fromstring(xml)  # noqa: S314 -- libvirt wrote it, and no guest can
    return DomainDescription(
        vcpus=_parse_vcpus(root),
        memory_kib=int(root.findtext("memory", "0")),
        graphics=next((_parse_graphics(each) for each in root.iterfind("devices/graphics") if _is_screen(each)), None),
        channels=tuple(_parse_channels(root)),
    )


def _parse_vcpus(root: ElementTree.Element) -> int:
    element = root.find("vcpu")
    return 0 if element is None else int(element.get("current") or element.text or 0)


def _is_screen(graphics: ElementTree.Element) -> bool:
    return graphics.get("type") in ("spice", "vnc")


def _parse_graphics(element: ElementTree.Element) -> Graphics:
    port = int(element.get("port") or element.get("tlsPort") or -1)
    listen = element.find("listen")
    host = element.get("listen") or (None if listen is None else listen.get("address"))
    return Graphics(element.get("type"), port if port > 0 else -1, host)


def _parse_channels(root: ElementTree.Element) -> list[DomainChannel]:
    found = []
    for element in root.iterfind("devices/channel[@type='unix']"):
        target, source = element.find("target"), element.find("source")
        if target is None or target.get("type") != "virtio":
            continue
        state = target.get("state")
        path = None if source is None else source.get("path")
        found.append(DomainChannel(target.get("name", ""), path, None if state is None else state == "connected"))
    return found
