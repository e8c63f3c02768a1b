"""The messages of our agent: dialect D1 with the additions of docs/wire.md, and how a message is made to fit a line."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from guestd.agent.outbox import BODY_LIMIT_BYTES

# A longer text adds nothing, and one process must not push the others out of the line.
LONGEST_TEXT_CHARS = 8192


class Cpu(Struct):
    """Percent, 0-100; degrees Celsius."""

    usage_percent: float | None
    cores_usage: list[float]
    temperature: float | None


class Memory(Struct):
    """KiB. `used_kb` is total less available, as `free` counts since procps 4; swap is null where there is none.

    All 0 when they cannot be read: readers of D1 require them.
    """

    total_kb: int
    used_kb: int
    available_kb: int
    swap_total_kb: int | None
    swap_used_kb: int | None


class DiskUsage(Struct):
    """GiB, as `df` counts: used and available leave out what is reserved."""

    mount_point: str
    total_gb: float
    used_gb: float
    available_gb: float
    filesystem: str


class DiskIo(Struct):
    """Per second, over whole disks."""

    read_bytes_per_sec: int
    write_bytes_per_sec: int
    read_ops_per_sec: int
    write_ops_per_sec: int


class Disk(Struct):
    """File systems and disk rates; no rates on a machine that has no disk of its own."""

    usage_stats: list[DiskUsage]
    io_stats: DiskIo | None


class Interface(Struct):
    """Rates per second, null while none is known: in the first message and for a new interface."""

    name: str
    bytes_received: int | None
    bytes_sent: int | None
    packets_received: int | None
    packets_sent: int | None
    errors_in: int | None
    errors_out: int | None
    ip_addresses: list[str]
    is_up: bool | None


class Network(Struct):
    """All interfaces but the loopback."""

    interfaces: list[Interface]


class LoadAverage(Struct):
    """Over 1, 5 and 15 minutes."""

    load_1min: float
    load_5min: float
    load_15min: float


class Machine(Struct):
    """D1's `data.system.system`; no load average on Windows."""

    uptime_seconds: int | None
    name: str
    os_version: str
    kernel_version: str
    hostname: str
    load_average: LoadAverage | None


class Process(Struct):
    """KiB, bytes since the process started, unix seconds; CPU in percent of one core since the last sample."""

    id: int
    parent_id: int | None
    name: str
    executable_path: str | None
    command_line: str | None
    cpu_usage_percent: float | None
    memory_usage_kb: int
    status: str
    start_time: int | None
    disk_read_bytes: int | None
    disk_write_bytes: int | None


class Port(Struct):
    """One socket."""

    port: int
    protocol: str
    state: str
    process_id: int | None
    process_name: str | None
    exe_path: str | None
    is_listening: bool


class Service(Struct):
    """`state` and `start_mode` as Windows names them: Running, Stopped; Auto, Manual, Disabled."""

    name: str
    display_name: str
    state: str
    start_mode: str | None
    status: str
    process_id: int | None
    path: str | None
    description: str | None = None


class Application(Struct, omit_defaults=True):
    """Times are RFC 3339; the icon comes once per run of the agent."""

    exe_path: str
    name: str
    access_count: int
    usage_minutes: int
    last_access: str | None
    is_active: bool
    description: str | None = None
    last_modified: str | None = None
    file_size: int | None = None
    icon_base64: str | None = None
    icon_format: str | None = None


class System(Struct):
    """D1's `data.system`."""

    cpu: Cpu
    memory: Memory
    disk: Disk
    network: Network
    system: Machine
    processes: list[Process]
    ports: list[Port]
    windows_services: list[Service]


class Content(Struct):
    """D1's `data`."""

    system: System
    applications: list[Application]


class FailedPart(Struct):
    """A part of this machine that this sample could not read, and why."""

    part: str
    reason: str


class Body(Struct, omit_defaults=True):
    """A message without its sequence header. `timestamp` None: this machine's clock has no time that can be written."""

    timestamp: str | None
    data: Content
    failed_parts: list[FailedPart] = []


def clean(text: str) -> str:
    """A text of bounded length that the store can hold: what was not UTF-8 becomes a question mark, a NUL a space."""
    return text[:LONGEST_TEXT_CHARS].replace("\0", " ").encode(errors="replace").decode()


def rfc3339(unix_seconds: float) -> str | None:
    """A time as the message has it; None for one that no calendar has, as a file's may be."""
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def fit(body: Body, limit_bytes: int = BODY_LIMIT_BYTES) -> bytes:
    """The message as JSON of at most so many bytes: the longest list loses its tail until it fits.

    The lists are expected to have what matters most in front.
    """
    system = body.data.system
    lists: list[list[Any]] = [
        system.processes, system.ports, system.windows_services, body.data.applications, system.disk.usage_stats,
        system.network.interfaces,
    ]  # fmt: skip
    return _cut_lists(body, lists, limit_bytes)


def shorten(line: bytes, limit_bytes: int) -> bytes | None:
    """A line of at most so many bytes, by the same rule for all its lists; None where it is too long without them.

    Its number and its mark stay: it is the same sample.
    """
    message = msgspec.json.decode(line)
    shortened = _cut_lists(message, list(_find_lists(message)), limit_bytes)
    return shortened if len(shortened) <= limit_bytes else None


def _cut_lists(message: object, lists: list[list[Any]], limit_bytes: int) -> bytes:
    encoded = msgspec.json.encode(message)
    while len(encoded) > limit_bytes and any(lists):
        longest = max(lists, key=lambda entries: len(msgspec.json.encode(entries)))
        del longest[len(longest) * 3 // 4 :]
        encoded = msgspec.json.encode(message)
    return encoded


def _find_lists(value: object) -> Iterator[list[Any]]:
    if isinstance(value, list):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _find_lists(member)
