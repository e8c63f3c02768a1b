"""The wire structs of every dialect, and what is known of a line without decoding it.

Pure. Dialects D1 (real agents) and D2 (the platform's interface) share one tree: where they differ in place or name,
both are optional here and `normalise` takes the one that is set. Unknown fields are ignored, so that old daemons
survive new agents. How a line becomes these structs, though it has mistakes in it, is `decoding`'s to know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from guestd.core.errors import BadFrame
from guestd.wire import limits
from guestd.wire.repair import storable

Int4 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
ProcessId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Amount = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PortNumber = Annotated[int, Meta(ge=0, le=65535)]
# Only what is rarely too long: a text past its bound sends its frame the slow way.
Name = Annotated[str, Meta(max_length=limits.NAME_CHARS)]
FilePath = Annotated[str, Meta(max_length=limits.PATH_CHARS)]
KeyPath = Annotated[str, Meta(max_length=limits.KEY_PATH_CHARS)]
Number = float | None  # agents turn NaN and infinities into null


class Cpu(Struct, frozen=True, gc=False):
    """Percent, 0-100; temperature in degrees Celsius."""

    usage_percent: Number = None
    cores_usage: list[Number] | None = None
    temperature: Number = None


class Memory(Struct, frozen=True, gc=False):
    """KiB; agents before 2025-08-25 sent bytes under these names."""

    total_kb: Amount
    used_kb: Amount
    available_kb: Amount
    swap_total_kb: Amount | None = None
    swap_used_kb: Amount | None = None


class DiskUsage(Struct, frozen=True, gc=False):
    """GiB."""

    mount_point: FilePath
    total_gb: Number = None
    used_gb: Number = None
    available_gb: Number = None
    filesystem: str | None = None


class DiskIo(Struct, frozen=True, gc=False):
    """Per second."""

    read_bytes_per_sec: Number = None
    write_bytes_per_sec: Number = None
    read_ops_per_sec: Number = None
    write_ops_per_sec: Number = None


class Disk(Struct, frozen=True, gc=False):
    """File systems and block device rates."""

    usage_stats: list[DiskUsage] = []
    io_stats: DiskIo | None = None


class Interface(Struct, frozen=True, gc=False):
    """Rates per second; in an agent's first message cumulative counters under the same names."""

    name: Name
    bytes_received: Number = None
    bytes_sent: Number = None
    packets_received: Number = None
    packets_sent: Number = None
    errors_in: Number = None
    errors_out: Number = None
    ip_addresses: list[str] | None = None
    is_up: bool | None = None


class Network(Struct, frozen=True, gc=False):
    """Network interfaces, lo left out."""

    interfaces: list[Interface] = []


class LoadAverage(Struct, frozen=True, gc=False):
    """Runnable processes, averaged over 1, 5 and 15 minutes."""

    load_1min: Number = None
    load_5min: Number = None
    load_15min: Number = None


class SystemInfo(Struct, frozen=True, gc=False):
    """D1's place of uptime and load."""

    uptime_seconds: Amount | None = None
    load_average: LoadAverage | None = None


class ProcessD1(Struct, frozen=True, gc=False):
    """One process as real agents name its fields; KiB, bytes, unix seconds."""

    id: ProcessId
    name: Name
    memory_usage_kb: Amount
    cpu_usage_percent: Number = None
    parent_id: ProcessId | None = None
    executable_path: FilePath | None = None
    command_line: str | None = None
    disk_read_bytes: Amount | None = None
    disk_write_bytes: Amount | None = None
    status: str = "Unknown"
    start_time: str | float | None = None


class ProcessD2(Struct, frozen=True, gc=False):
    """One process as the platform's interface names its fields."""

    pid: ProcessId
    name: Name
    memory_kb: Amount
    cpu_percent: Number = None
    ppid: ProcessId | None = None
    exe_path: FilePath | None = None
    cmd_line: str | None = None
    disk_read_bytes: Amount | None = None
    disk_write_bytes: Amount | None = None
    status: str = "Unknown"
    start_time: str | float | None = None


class Port(Struct, frozen=True, gc=False):
    """One socket (D1) or one port with a count (D2)."""

    port: PortNumber
    protocol: str
    state: str
    process_id: ProcessId | None = None
    pid: ProcessId | None = None
    process_name: Name | None = None
    exe_path: FilePath | None = None
    is_listening: bool = False
    connection_count: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class Service(Struct, frozen=True, gc=False):
    """One service; D1 names first, D2's beside them."""

    name: Name
    display_name: Name | None = None
    state: str | None = None
    start_mode: str | None = None
    start_type: str | None = None
    service_type: str | None = None
    process_id: ProcessId | None = None
    pid: ProcessId | None = None
    path: FilePath | None = None
    exe_path: FilePath | None = None
    description: FilePath | None = None
    dependencies: list[str] | None = None
    is_default: bool = False


class Application(Struct, frozen=True, gc=False):
    """One application (D2 and our agent)."""

    exe_path: KeyPath
    name: Name
    version: Name | None = None
    description: FilePath | None = None
    publisher: Name | None = None
    last_access: str | float | None = None
    last_modified: str | float | None = None
    access_count: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    usage_minutes: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    file_size: Amount | None = None
    is_active: bool = True
    icon_base64: str | None = None
    icon_format: str | None = None


class System(Struct, frozen=True, gc=False):
    """What D1 and D2 put under data.system."""

    cpu: Cpu
    memory: Memory
    disk: Disk = Disk()
    network: Network = Network()
    system: SystemInfo | None = None
    uptime_seconds: Amount | None = None
    load_average: LoadAverage | None = None
    processes: list[ProcessD1] | None = None
    ports: list[Port] | None = None
    windows_services: list[Service] | None = None


class Content(Struct, frozen=True, gc=False):
    """What stands under data."""

    system: System
    processes: list[ProcessD2] | None = None
    applications: list[Application] | None = None
    ports: list[Port] | None = None
    windows_services: list[Service] | None = None


class Metrics(Struct, frozen=True, gc=False):
    """One metrics message."""

    data: Content
    type: str = ""
    timestamp: str | float | None = None
    boot_id: str | None = None
    vm_id: str | None = None
    camel_vm_id: str | None = msgspec.field(default=None, name="vmId")

    def claims(self) -> str | None:
        """The machine that the payload says it is of, if it says so."""
        return self.vm_id or self.camel_vm_id


@dataclass(frozen=True, slots=True)
class Header:
    """The place of a line in its sender's sequence (docs/wire.md)."""

    boot_id: str
    seq: int
    oldest: int
    after: str | None = None  # the mark of the line before; agents that set no marks are not checked
    mark: str | None = None


_HEADER = re.compile(
    rb'\{"type":"metrics","boot_id":"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})","seq":([1-9][0-9]{0,17}),"oldest":([1-9][0-9]{0,17})(?:,"after":"([0-9a-f]{16})","mark":"([0-9a-f]{16})")?[,}]'
)
_TYPE = re.compile(rb'\s*\{\s*"type"\s*:\s*"([^"\\]{1,100})"')
# The answer to a command bears no type.
_RESPONSE = re.compile(rb'\s*\{\s*"id"\s*:\s*"[^"\\]{0,100}"\s*,\s*"success"\s*:')


def header(line: bytes) -> Header | None:
    """The sequence header that our own agent begins a line with; None for every other sender."""
    match = _HEADER.match(line)
    if match is None:
        return None
    boot_id, seq, oldest, after, mark = match.groups()
    marks = (after.decode(), mark.decode()) if mark else (None, None)
    found = Header(boot_id.decode(), int(seq), int(oldest), *marks)
    return found if found.oldest <= found.seq else None


# The other guest messages of the wire; their names are safe as metric labels.
OTHER_TYPES = frozenset(
    {
        "agent_event", "circuit_breaker_state", "connection_status", "error_report", "firewall_event", "keep_alive",
        "ping", "pong", "request_pending_scripts", "response", "script_completion",
    }
)  # fmt: skip


def other_type(line: bytes) -> str | None:
    """The type of a line that is known not to carry metrics, else None (metrics, or not known before decoding).

    One of OTHER_TYPES, or `unknown`: what a guest may write there is without end.
    """
    if _RESPONSE.match(line):
        return "response"
    match = _TYPE.match(line)
    name = match.group(1).decode(errors="replace") if match else "metrics"
    # Such a line may have been cut short, and a metrics line written behind it.
    if name == "metrics" or b'{"type":"metrics"' in line:
        return None
    return name if name in OTHER_TYPES else "unknown"


# A guest cannot make the search for a whole message in a line long.
MAX_RESTARTS = 8


def restarts(line: bytes) -> Iterator[bytes]:
    """What may be the whole message behind the half of one, the last first."""
    end = len(line)
    for _ in range(MAX_RESTARTS):
        # A quote inside a JSON text is escaped, so these bytes can only begin an object.
        end = line.rfind(b'{"type":', 1, end)
        if end <= 0:
            break
        yield line[end:]


# What decoders raise for a text that is no JSON. A ValidationError, of a wrong value, is a DecodeError too.
SYNTAX_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def is_whole(line: bytes) -> bool:
    """Whether a line is one JSON value or ends with one: the first line of a connection may be the rest of one."""
    try:
        text = storable(line)
    except BadFrame:
        return False
    return is_value(text) or any(map(is_value, restarts(text)))


def is_json(line: bytes) -> bool:
    """Whether a line is one whole JSON value."""
    try:
        return is_value(storable(line))
    except BadFrame:
        return False


def is_value(text: bytes) -> bool:
    """Whether a text without bad escapes is one whole JSON value."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except SYNTAX_ERRORS:
        return False
    return True
