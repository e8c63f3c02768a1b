"""Makes the rows of every table from a decoded message, and corrects units, bounds and names.

Pure: the sample's timestamp, the row id and the guest's history are arguments. A wrong value is either adjusted (and
named in `Rows.adjustments`, for counting) or its entry is refused (`Rows.refusals`).

Quirks of real agents that are handled here (docs/wire.md lists all):

* memory in bytes under KiB names: recognised because no guest has a TiB or more, in which all values are whole KiB;
* an agent's first message has cumulative network counters under the names of rates;
* pseudo file systems among the disks; one entry per socket among the ports; duplicate pids;
* null for every number that the guest could not determine.

An empty text is stored as it came where NULL means that the guest reported none, as it does in the platform's backend.
Where guestd has a default (a service's state and types, its name for people), an empty text means none as well.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar
from uuid import UUID

import msgspec

from guestd.core.config import CommandLines
from guestd.rows import json_columns
from guestd.rows.model import Rows
from guestd.rows.processes import process_rows
from guestd.rows.times import stored_time
from guestd.wire import limits
from guestd.wire.limits import (
    FORMAT_CHARS,
    ICON_BYTES,
    KEY_PATH_CHARS,
    NAME_CHARS,
    PATH_CHARS,
    PROTOCOL_CHARS,
    STATE_CHARS,
)
from guestd.wire.schema import Application, DiskIo, LoadAverage, Memory, Metrics, Number, Port, Service, System
from gueststore.contract import (
    ApplicationUsageHistory,
    IncomingApplication,
    IncomingService,
    PortUsage,
    Shared,
    SystemMetrics,
)


@dataclass(slots=True)
class GuestHistory:
    """What is known from a guest's earlier messages, to distinguish its network rates from its counters."""

    uptime_seconds: int | None = None
    interfaces: frozenset[str] = frozenset()


def normalise(
    metrics: Metrics,
    *,
    row_id: UUID,
    machine_id: UUID,
    timestamp: datetime,
    received_at: datetime,
    digest: int | None,
    history: GuestHistory,
    command_lines: CommandLines,
) -> Rows:
    """All rows of one message. Updates `history` for the next message."""
    content = metrics.data
    system = content.system
    adjustments: list[str] = []
    d1 = _first(limits.PROCESSES, adjustments, system.processes)
    d2 = _first(limits.PROCESSES - len(d1), adjustments, content.processes)
    processes = process_rows(d1, d2, command_lines, adjustments)
    ports = _ports(_first(limits.SOCKETS, adjustments, system.ports, content.ports))
    service_list = _first(limits.SERVICES, adjustments, system.windows_services, content.windows_services)
    services = {service.name[:NAME_CHARS]: service for service in service_list}
    applications = {
        app.exe_path[:KEY_PATH_CHARS]: app for app in _first(limits.APPLICATIONS, adjustments, content.applications)
    }
    return Rows(
        shared=Shared(row_id, machine_id, timestamp, received_at, digest),
        system_metrics=_system_metrics(metrics, history, adjustments),
        processes=processes,
        ports=ports,
        application_history=[
            ApplicationUsageHistory(
                executablePath=path,
                accessCount=app.access_count,
                totalUsageMinutes=app.usage_minutes,
                isActive=app.is_active,
            )
            for path, app in applications.items()
        ],
        applications=[_application(app) for app in applications.values()],
        services=[_service(service) for service in services.values()],
        adjustments=adjustments,
        failed_parts=len(metrics.failed_parts or ()),
    )


Entry = TypeVar("Entry")


def _first(most: int, adjustments: list[str], *lists: Sequence[Entry] | None) -> list[Entry]:
    """The first entries of the lists together, up to `most`."""
    entries = [entry for some in lists for entry in some or ()]
    if len(entries) > most:
        adjustments.append("list_cut")
        del entries[most:]
    return entries


def _system_metrics(metrics: Metrics, history: GuestHistory, adjustments: list[str]) -> SystemMetrics:
    system = metrics.data.system
    cores = [_percent(core, adjustments) for core in _first(limits.CORES, adjustments, system.cpu.cores_usage)]
    disks = _first(
        limits.DISKS, adjustments, [disk for disk in system.disk.usage_stats if json_columns.is_real_file_system(disk)]
    )
    interfaces = _first(limits.INTERFACES, adjustments, system.network.interfaces)
    total_kb, used_kb, available_kb, swap_total_kb, swap_used_kb = _memory_kb(system.memory, adjustments)
    uptime_seconds, load = _uptime_and_load(system)
    if uptime_seconds is None:
        adjustments.append("missing_uptime")
    disk_io = system.disk.io_stats or DiskIo()
    are_new = _interfaces_first_seen(
        frozenset(map(json_columns.interface_name, interfaces)),
        metrics.boot_id is not None,
        disk_io,
        uptime_seconds,
        history,
    )
    if are_new:
        adjustments.append("network_counters")
    return SystemMetrics(
        cpuUsagePercent=_cpu_percent(system.cpu.usage_percent, cores, adjustments),
        cpuCoresUsage=json_columns.encode_list(cores, adjustments),
        cpuTemperature=system.cpu.temperature,
        totalMemoryKB=total_kb,
        usedMemoryKB=used_kb,
        availableMemoryKB=available_kb,
        swapTotalKB=swap_total_kb,
        swapUsedKB=swap_used_kb,
        diskUsageStats=json_columns.encode_list(
            [json_columns.describe_disk(disk, adjustments) for disk in disks], adjustments
        ),
        diskIOStats=json_columns.encode_disk_rates(disk_io, adjustments),
        networkStats=json_columns.encode_list(
            [
                json_columns.describe_interface(each, json_columns.interface_name(each) in are_new, adjustments)
                for each in interfaces
            ],
            adjustments,
        ),
        uptime=uptime_seconds or 0,
        loadAverage=json_columns.load_average(load, adjustments) if load is not None else None,
    )


def _percent(value: Number, adjustments: list[str]) -> Number:
    if value is None or 0 <= value <= 100:
        return value
    adjustments.append("percent_clamped")
    return min(max(value, 0.0), 100.0)


def _cpu_percent(value: Number, cores: Sequence[Number], adjustments: list[str]) -> float:
    """The column cannot be NULL: without a value it is the mean of the cores, or 0, and counted."""
    percent = _percent(value, adjustments)
    if percent is not None:
        return percent
    adjustments.append("missing_cpu")
    known = [core for core in cores if core is not None]
    return sum(known) / len(known) if known else 0.0


# A TiB in KiB. A guest of 1 GiB that reports bytes exceeds it, and hardly any guest that reports KiB does.
_IMPLAUSIBLE_KB = 2**30


def _memory_kb(memory: Memory, adjustments: list[str]) -> tuple[int, int, int, int | None, int | None]:
    figures = (memory.total_kb, memory.used_kb, memory.available_kb, memory.swap_total_kb, memory.swap_used_kb)
    if memory.total_kb < _IMPLAUSIBLE_KB or any(figure % 1024 for figure in figures if figure is not None):
        return figures
    adjustments.append("memory_in_bytes")
    total_kb, used_kb, available_kb, swap_total_kb, swap_used_kb = (
        None if figure is None else figure // 1024 for figure in figures
    )
    return total_kb or 0, used_kb or 0, available_kb or 0, swap_total_kb, swap_used_kb


def _uptime_and_load(system: System) -> tuple[int | None, LoadAverage | None]:
    """D1 has them in data.system.system, D2 in data.system."""
    inner = system.system
    if inner is not None and inner.uptime_seconds is not None:
        return inner.uptime_seconds, inner.load_average or system.load_average
    return system.uptime_seconds, system.load_average or (inner.load_average if inner else None)


def _interfaces_first_seen(
    names: frozenset[str], is_own_agent: bool, disk_io: DiskIo, uptime_seconds: int | None, history: GuestHistory
) -> frozenset[str]:
    """The interfaces whose values are counters since boot and not rates; updates the history.

    Agents report counters when they see an interface for the first time. Our own agent (it has a boot_id) never does.
    Without a history, an agent's first message is recognised by its disk rates, which are all 0. An agent that was
    restarted without its guest is not recognised.
    """
    rebooted = (
        history.uptime_seconds is not None and uptime_seconds is not None and uptime_seconds < history.uptime_seconds
    )
    remembered = history.uptime_seconds is not None and not rebooted
    if is_own_agent:
        new: frozenset[str] = frozenset()
    elif remembered:
        new = names - history.interfaces
    else:
        rates = (
            disk_io.read_bytes_per_sec,
            disk_io.write_bytes_per_sec,
            disk_io.read_ops_per_sec,
            disk_io.write_ops_per_sec,
        )
        new = frozenset() if any(rates) else names
    history.uptime_seconds = uptime_seconds if uptime_seconds is not None else history.uptime_seconds or 0
    history.interfaces = names
    return new


_PORT_STATES = {
    "closed": "CLOSED", "close": "CLOSED", "listen": "LISTEN", "synsent": "SYN_SENT", "synreceived": "SYN_RECEIVED",
    "synrecv": "SYN_RECEIVED", "established": "ESTABLISHED", "finwait1": "FIN_WAIT1", "finwait2": "FIN_WAIT2",
    "closewait": "CLOSE_WAIT", "closing": "CLOSING", "lastack": "LAST_ACK", "timewait": "TIME_WAIT",
    "deletetcb": "DELETE_TCB", "unknown": "UNKNOWN", "udp": "UDP",
}  # fmt: skip


@lru_cache(maxsize=256)
def _port_state(state: str) -> str:
    return _PORT_STATES.get(state.replace("_", "").replace("-", "").lower(), state.upper()[:STATE_CHARS])


@lru_cache(maxsize=256)
def _protocol(protocol: str) -> str:
    return protocol.upper()[:PROTOCOL_CHARS]


# Stands for no text among texts, which are sorted; a decoded text contains no NUL.
_NONE = "\0"


def _ports(entries: Sequence[Port]) -> list[PortUsage]:
    """One row per (port, protocol, state, process), with its number of sockets; ordinal is its place when sorted."""
    sockets: dict[tuple[int, str, str, int, str, str, bool], int] = {}
    for entry in entries:
        process_id = entry.process_id if entry.process_id is not None else entry.pid
        key = (
            entry.port, _protocol(entry.protocol[:PROTOCOL_CHARS]), _port_state(entry.state[:STATE_CHARS]),
            -1 if process_id is None else process_id,
            _NONE if entry.process_name is None else entry.process_name[:NAME_CHARS],
            _NONE if entry.exe_path is None else entry.exe_path[:PATH_CHARS], entry.is_listening,
        )  # fmt: skip
        sockets[key] = sockets.get(key, 0) + (1 if entry.connection_count is None else entry.connection_count)
    return [
        PortUsage(
            ordinal=ordinal,
            port=port,
            protocol=protocol,
            state=state,
            processId=None if process_id < 0 else process_id,
            processName=None if process_name == _NONE else process_name,
            executablePath=None if executable_path == _NONE else executable_path,
            isListening=is_listening,
            connectionCount=min(sockets[key], 2**31 - 1),
        )
        for ordinal, key in enumerate(sorted(sockets))
        for port, protocol, state, process_id, process_name, executable_path, is_listening in (key,)
    ]


def _application(app: Application) -> IncomingApplication:
    icon = _icon(app.icon_base64)
    return IncomingApplication(
        executablePath=app.exe_path[:KEY_PATH_CHARS],
        applicationName=app.name[:NAME_CHARS],
        version=_cut(app.version, NAME_CHARS),
        description=_cut(app.description, PATH_CHARS),
        publisher=_cut(app.publisher, NAME_CHARS),
        lastAccessTime=stored_time(app.last_access),
        lastModifiedTime=stored_time(app.last_modified),
        accessCount=app.access_count,
        totalUsageMinutes=app.usage_minutes,
        iconData=icon,
        iconFormat=(app.icon_format or "png")[:FORMAT_CHARS] if icon else None,
        fileSize=app.file_size,
        isActive=app.is_active,
    )


def _icon(encoded: str | None) -> bytes | None:
    if not encoded or len(encoded) > ICON_BYTES * 4 // 3 + 4:
        return None
    try:
        return b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None


def _cut(text: str | None, chars: int) -> str | None:
    return None if text is None else text[:chars]


_START_TYPES = {"auto": "automatic", "delayed": "delayed-auto", "auto delayed": "delayed-auto"}


def _service(service: Service) -> IncomingService:
    start = (service.start_type or service.start_mode or "unknown")[:STATE_CHARS].lower()
    dependencies = service.dependencies
    if dependencies is not None:
        dependencies = [name[:NAME_CHARS] for name in dependencies[: limits.DEPENDENCIES]]
    return IncomingService(
        serviceName=service.name[:NAME_CHARS],
        displayName=(service.display_name or service.name)[:NAME_CHARS],
        description=_cut(service.description, PATH_CHARS),
        startType=_START_TYPES.get(start, start)[:STATE_CHARS],
        serviceType=(service.service_type or "win32")[:STATE_CHARS],
        executablePath=_cut(service.exe_path if service.path is None else service.path, PATH_CHARS),
        dependencies=None if dependencies is None else msgspec.json.encode(dependencies),
        currentState=(service.state or "unknown")[:STATE_CHARS].lower().replace(" ", "-")[:STATE_CHARS],
        processId=service.process_id if service.process_id is not None else service.pid,
        isDefaultService=service.is_default,
    )
