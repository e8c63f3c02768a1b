"""The wire structs of every dialect. Pure.

Dialects D1 (real agents) and D2 (the platform's interface) share one tree: where they differ in place or name,
both are optional here and `normalise` uses the one that is set. Unknown fields are ignored, so that old daemons
work with new agents. `decode` reads these structs from a line; `line` reads what is needed before.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from guestd.wire import limits

Int4 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
ProcessId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[int, Meta(ge=0, le=limits.AMOUNT)]
Kibibytes = Annotated[int, Meta(ge=0, le=limits.MEMORY_KB)]
UptimeSeconds = Annotated[int, Meta(ge=0, le=limits.UPTIME_SECONDS)]
PortNumber = Annotated[int, Meta(ge=0, le=65535)]
# Only for texts that are rarely too long: a longer one makes the whole frame be decoded part by part.
Name = Annotated[str, Meta(max_length=limits.NAME_CHARS)]
FilePath = Annotated[str, Meta(max_length=limits.PATH_CHARS)]
KeyPath = Annotated[str, Meta(max_length=limits.KEY_PATH_CHARS)]
Number = float | None  # agents turn NaN and infinities into null
ProcessPercent = Annotated[float, Meta(le=limits.PROCESS_PERCENT)] | None
Celsius = Annotated[float, Meta(ge=-limits.CELSIUS, le=limits.CELSIUS)] | None


class Cpu(Struct, frozen=True, gc=False):
    """Percent, 0-100; temperature in degrees Celsius."""

    usage_percent: Number = None
    cores_usage: list[Number] | None = None
    temperature: Celsius = None


class Memory(Struct, frozen=True, gc=False):
    """KiB; agents before 2025-08-25 sent bytes under these names."""

    total_kb: Kibibytes
    used_kb: Kibibytes
    available_kb: Kibibytes
    swap_total_kb: Kibibytes | None = None
    swap_used_kb: Kibibytes | None = None


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

    uptime_seconds: UptimeSeconds | None = None
    load_average: LoadAverage | None = None


class ProcessD1(Struct, frozen=True, gc=False):
    """One process as real agents name its fields; KiB, bytes, unix seconds."""

    id: ProcessId
    name: Name
    memory_usage_kb: Kibibytes
    cpu_usage_percent: ProcessPercent = None
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
    memory_kb: Kibibytes
    cpu_percent: ProcessPercent = None
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
    uptime_seconds: UptimeSeconds | None = None
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


class FailedPart(Struct, frozen=True, gc=False):
    """A part of its machine that our agent could not read for this message, and why."""

    part: str | None = None
    reason: str | None = None


class Metrics(Struct, frozen=True, gc=False):
    """One metrics message."""

    data: Content
    type: str = ""
    timestamp: str | float | None = None
    boot_id: str | None = None
    age_ms: Milliseconds | None = None
    vm_id: str | None = None
    camel_vm_id: str | None = msgspec.field(default=None, name="vmId")
    failed_parts: list[FailedPart] | None = None

    def claims(self) -> str | None:
        """The machine that the payload names; None if it names none."""
        return self.vm_id or self.camel_vm_id
