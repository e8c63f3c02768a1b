"""A libvirt domain as plain values, and the Machine.status that follows from its state.

Pure. Maps libvirt's numeric states to their names and parses the few needed facts from a domain's XML.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID
from xml.etree import ElementTree

from guestd.hypervisor.xml import parse_count, parse_xml

# libvirt's virDomainState, and the reasons of the states whose reason matters; the index is libvirt's number.
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

# libvirt's virDomainEventStoppedDetailType, in the words of shutoff.
_STOPS = ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from_snapshot")

# Reasons of shutoff that say that the domain ended here. Not `unknown`, which is all that a libvirtd that was restarted
# since reports, also of a domain that was migrated away.
KNOWN_ENDS = frozenset({"shutdown", "destroyed", "crashed", "saved", "failed", "from_snapshot", "daemon"})

# Paused domains are mapped by reason; the other states (shutdown, nostate) have no status.
_STATUSES = {
    "running": "running",
    "blocked": "running",
    "pmsuspended": "suspended",
    "shutoff": "off",
    "crashed": "error",
}
# An operation is in progress: its result is not known yet.
_TRANSIENT_PAUSES = frozenset(
    {"migration", "save", "dump", "shutting_down", "snapshot", "starting_up", "postcopy"}
)  # fmt: skip
_FAILED_PAUSES = frozenset({"io_error", "watchdog", "crashed", "postcopy_failed"})

# What the columns of the store hold.
MAX_VCPUS = 2**31 - 1
MAX_MEMORY_KIB = 2**63 - 1
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class DomainChannel:
    """A virtio-serial channel: name in the guest, QEMU's unix socket, whether the guest has it open.

    `path` is None until libvirt has assigned one; `is_open` is None while the domain is off.
    """

    name: str
    path: str | None
    is_open: bool | None


@dataclass(frozen=True, slots=True)
class Graphics:
    """The graphical console: spice or vnc, TCP port (-1: none), listen address."""

    protocol: str | None
    port: int
    host: str | None


@dataclass(frozen=True, slots=True)
class DomainDescription:
    """The facts parsed from a domain's XML."""

    vcpus: int
    memory_kib: int
    graphics: Graphics | None
    channels: tuple[DomainChannel, ...]


@dataclass(frozen=True, slots=True)
class Boot:
    """One uninterrupted run of a domain, as far as libvirt reports it.

    `connection` counts guestd's connections to libvirt; `event` is the number in it of the domain's last lifecycle or
    reboot event; `id` is libvirt's, -1 while the domain is off. Two that are equal are the same run.
    """

    connection: int
    event: int
    id: int


NO_BOOT = Boot(0, 0, -1)


@dataclass(frozen=True, slots=True)
class Domain:
    """A virtual machine in libvirt. `since` is the monotonic time at which this state was first observed.

    `problem` explains why its XML cannot be read; `description` is then as last read, None if it never was.
    """

    uuid: UUID
    name: str
    state: str
    reason: str
    is_active: bool
    since: float
    description: DomainDescription | None
    problem: str | None = None
    boot: Boot = NO_BOOT


def name_state(state: int, reason: int) -> tuple[str, str]:
    """Map libvirt's numbers to (state, reason); a number this list does not know becomes nostate or unknown."""
    name = STATES[state] if 0 <= state < len(STATES) else "nostate"
    reasons = _REASONS.get(name, ())
    return name, reasons[reason] if 0 <= reason < len(reasons) else "unknown"


def name_stop(detail: int) -> str:
    """Map the detail of libvirt's event that a domain stopped to the reason of the state shutoff."""
    return _STOPS[detail] if 0 <= detail < len(_STOPS) else "unknown"


def derive_status(domain: Domain) -> str | None:
    """Derive Machine.status from a domain's state; None if the state allows no statement."""
    if domain.state == "paused":
        if domain.reason in _TRANSIENT_PAUSES:
            return None
        return "error" if domain.reason in _FAILED_PAUSES else "suspended"
    if (domain.state, domain.reason) == ("shutoff", "migrated"):
        # It runs on another host now, which writes its status.
        return None
    return _STATUSES.get(domain.state)


def parse_description(xml: str) -> DomainDescription:
    """Parse a domain's XML, live or inactive. ValueError where it is malformed.

    An element that is missing or invalid gives 0, None or an empty value.
    """
    root = parse_xml(xml)
    return DomainDescription(
        vcpus=_parse_vcpus(root),
        memory_kib=_parse_memory_kib(root),
        graphics=next((_parse_graphics(each) for each in root.iterfind("devices/graphics") if _is_console(each)), None),
        channels=tuple(_parse_channels(root)),
    )


def _parse_vcpus(root: ElementTree.Element) -> int:
    element = root.find("vcpu")
    return 0 if element is None else parse_count(element.get("current") or element.text, MAX_VCPUS)


def _parse_memory_kib(root: ElementTree.Element) -> int:
    element = root.find("memory")
    # libvirt prints KiB, whatever unit it was given.
    if element is None or element.get("unit", "KiB") != "KiB":
        return 0
    return parse_count(element.text, MAX_MEMORY_KIB)


def _is_console(graphics: ElementTree.Element) -> bool:
    return graphics.get("type") in ("spice", "vnc")


def _parse_graphics(element: ElementTree.Element) -> Graphics:
    port = parse_count(element.get("port"), MAX_PORT) or parse_count(element.get("tlsPort"), MAX_PORT)
    listen = element.find("listen")
    host = element.get("listen") or (None if listen is None else listen.get("address"))
    return Graphics(element.get("type"), port or -1, host)


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
