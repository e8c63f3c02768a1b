"""One decoded message and its receive time become the rows of every table; units, bounds and names are put right here.

Pure: the sample's time, the row id and what is remembered of the guest are arguments. Rows are tuples in the column
order of `gueststore.contract`. What a guest got wrong is either mended (and named in `Rows.adjustments`, for counting)
or costs that entry alone (`Rows.refusals`).

Known quirks of real agents that are dealt with here (docs/wire.md lists them all):

* memory in bytes under KiB names: told apart because no guest here has a TiB that is a whole number of KiB thrice over;
* the first message of an agent carries cumulative network counters under the names of rates;
* pseudo file systems among the disks; one entry per socket among the ports; duplicate pids;
* null for every number that the guest could not compute.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from guestd.core.config import CommandLines
from guestd.core.transport import Transport
from guestd.rows import json_columns
from guestd.rows.redact import SUSPICIOUS, Redaction
from guestd.wire import limits
from guestd.wire.decode import Refusal
from guestd.wire.limits import (
    COMMAND_LINE_CHARS,
    FORMAT_CHARS,
    ICON_BYTES,
    KEY_PATH_CHARS,
    NAME_CHARS,
    PATH_CHARS,
    PROTOCOL_CHARS,
    STATE_CHARS,
)
from guestd.wire.schema import (
    Application,
    DiskIo,
    LoadAverage,
    Memory,
    Metrics,
    Number,
    Port,
    ProcessD1,
    ProcessD2,
    Service,
    System,
)

Row = tuple[Any, ...]

# A guest's own time is kept when it is this near to the time of receipt.
CLOCK_TOLERANCE = timedelta(minutes=5)
# By MQTT a message may have waited in the broker's queue, but not come before its time. Not as old as raw samples get:
# it would be dropped with them, and nothing that a guest says may make chunks far and wide.
BROKER_QUEUE_TIME = timedelta(days=7)
BROKER_CLOCK_TOLERANCE = timedelta(seconds=60)


@dataclass(slots=True)
class Stream:
    """What is remembered between the messages of one guest, to tell its network rates from its counters."""

    uptime_seconds: int | None = None
    interfaces: frozenset[str] = frozenset()


@dataclass(slots=True)
class Rows:
    """The rows of one frame, by table, each in its contract's column order."""

    system_metrics: Row
    processes: list[Row]
    ports: list[Row]
    application_history: list[Row]
    applications: list[Row]
    services: list[Row]
    refusals: list[Refusal] = field(default_factory=list)
    adjustments: list[str] = field(default_factory=list)
    dialect: str = "D1"

    @property
    def count(self) -> int:
        """Rows for all tables."""
        series = 1 + len(self.processes) + len(self.ports) + len(self.application_history)
        return series + len(self.applications) + len(self.services)


def moved(rows: Rows, timestamp: datetime) -> Rows:
    """The same rows under another time."""
    row_id, machine_id, _, *rest = rows.system_metrics
    return replace(
        rows,
        system_metrics=(row_id, machine_id, timestamp, *rest),
        processes=[(machine_id, timestamp, *row[2:]) for row in rows.processes],
        ports=[(machine_id, timestamp, *row[2:-1], timestamp) for row in rows.ports],
        application_history=[(machine_id, timestamp, *row[2:]) for row in rows.application_history],
    )


def known_as(rows: Rows, digest: int | None) -> Rows:
    """The same rows with another digest of their frame."""
    *rest, _ = rows.system_metrics
    return replace(rows, system_metrics=(*rest, digest))


def without(rows: Rows, taken: Set[tuple[str, UUID, datetime, str]]) -> tuple[Rows, list[Refusal]]:
    """The rows whose (table, machine, time, key) is not taken, and the others as refusals."""
    refusals: list[Refusal] = []

    def free(table: str, series: list[Row]) -> list[Row]:
        left = [row for row in series if (table, row[0], row[1], str(row[2])) not in taken]
        refusals.extend(
            Refusal(table, str(row[2]), "a row with this key is there already")
            for row in series
            if (table, row[0], row[1], str(row[2])) in taken
        )
        return left

    left = replace(
        rows,
        processes=free("ProcessSnapshot", rows.processes),
        ports=free("PortUsage", rows.ports),
        application_history=free("ApplicationUsageHistory", rows.application_history),
    )
    return left, refusals


def guest_time(claimed: str | float | None) -> datetime | None:
    """A time as agents write it (RFC 3339 with up to 9 digits, or unix seconds or milliseconds); None if it is none."""
    try:
        if isinstance(claimed, str):
            read = datetime.fromisoformat(claimed)
            return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
        if claimed is not None:
            return datetime.fromtimestamp(claimed / 1000 if claimed > 1e11 else claimed, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def sample_time(claimed: datetime | None, received_at: datetime, channel: Transport) -> datetime:
    """The time that a sample is stored under: the guest's when it is plausible, else the time of receipt; whole ms."""
    earliest, latest = received_at - CLOCK_TOLERANCE, received_at + CLOCK_TOLERANCE
    if channel is Transport.MQTT:
        earliest, latest = received_at - BROKER_QUEUE_TIME, received_at + BROKER_CLOCK_TOLERANCE
    if claimed is None or not earliest <= claimed <= latest:
        claimed = received_at
    return whole_milliseconds(claimed)


def whole_milliseconds(moment: datetime) -> datetime:
    """The store keeps milliseconds; cutting here keeps the key that we compare the key that is stored."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def uuid7(moment: datetime, random: bytes) -> UUID:
    """A time-ordered UUID (RFC 9562, version 7) of 10 random bytes."""
    milliseconds = (moment - _EPOCH) // _MILLISECOND
    tail = int.from_bytes(random)
    return UUID(int=milliseconds << 80 | 7 << 76 | (tail >> 68 & 0xFFF) << 64 | 0b10 << 62 | tail & (1 << 62) - 1)


def normalise(
    metrics: Metrics,
    *,
    row_id: UUID,
    machine_id: UUID,
    timestamp: datetime,
    received_at: datetime,
    digest: int | None,
    stream: Stream,
    command_lines: CommandLines,
) -> Rows:
    """All rows of one message; every one carries `timestamp`. Remembers in `stream` what the next message needs."""
    content = metrics.data
    system = content.system
    adjustments: list[str] = []
    process_snapshots = processes(
        system.processes, content.processes, machine_id, timestamp, command_lines, adjustments
    )
    ports = _ports(_first(limits.SOCKETS, adjustments, system.ports, content.ports), machine_id, timestamp)
    listed = _first(limits.SERVICES, adjustments, system.windows_services, content.windows_services)
    services = {service.name[:NAME_CHARS]: service for service in listed}
    applications = {
        app.exe_path[:KEY_PATH_CHARS]: app for app in _first(limits.APPLICATIONS, adjustments, content.applications)
    }
    return Rows(
        system_metrics=_system_metrics(
            metrics,
            row_id,
            machine_id,
            timestamp,
            received_at,
            digest=digest,
            stream=stream,
            adjustments=adjustments,
        ),
        processes=process_snapshots,
        ports=ports,
        application_history=[
            (machine_id, timestamp, path, app.access_count, app.usage_minutes, app.is_active)
            for path, app in applications.items()
        ],
        applications=[_application(app, machine_id, received_at) for app in applications.values()],
        services=[_service(service, machine_id, received_at) for service in services.values()],
        adjustments=adjustments,
    )


Entry = TypeVar("Entry")


def _first(most: int, adjustments: list[str], *lists: Sequence[Entry] | None) -> list[Entry]:
    """The entries of the lists together, as many as are taken."""
    entries = [entry for some in lists for entry in some or ()]
    if len(entries) > most:
        adjustments.append("list_cut")
        del entries[most:]
    return entries


def _system_metrics(
    metrics: Metrics,
    row_id: UUID,
    machine_id: UUID,
    timestamp: datetime,
    received_at: datetime,
    *,
    digest: int | None,
    stream: Stream,
    adjustments: list[str],
) -> Row:
    system = metrics.data.system
    cores = [_percent(core, adjustments) for core in _first(limits.CORES, adjustments, system.cpu.cores_usage)]
    disks = _first(
        limits.DISKS, adjustments, [disk for disk in system.disk.usage_stats if json_columns.holds_files(disk)]
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
        stream,
    )
    if are_new:
        adjustments.append("network_counters")
    return (
        row_id,
        machine_id,
        timestamp,
        received_at,
        _cpu_percent(system.cpu.usage_percent, cores, adjustments),
        json_columns.listed(cores, adjustments),
        system.cpu.temperature,
        total_kb,
        used_kb,
        available_kb,
        swap_total_kb,
        swap_used_kb,
        json_columns.listed([json_columns.disk_usage(disk, adjustments) for disk in disks], adjustments),
        json_columns.disk_rates(disk_io, adjustments),
        json_columns.listed(
            [
                json_columns.network(each, json_columns.interface_name(each) in are_new, adjustments)
                for each in interfaces
            ],
            adjustments,
        ),
        uptime_seconds or 0,
        json_columns.load_average(load, adjustments) if load is not None else None,
        digest,
    )


def _percent(value: Number, adjustments: list[str]) -> Number:
    if value is None or 0 <= value <= 100:
        return value
    adjustments.append("percent_clamped")
    return min(max(value, 0.0), 100.0)


def _cpu_percent(value: Number, cores: Sequence[Number], adjustments: list[str]) -> float:
    """The column takes no null: without a figure the mean of the cores stands in, without those 0, counted."""
    percent = _percent(value, adjustments)
    if percent is not None:
        return percent
    adjustments.append("missing_cpu")
    known = [core for core in cores if core is not None]
    return sum(known) / len(known) if known else 0.0


# A TiB in KiB. A guest of 1 GiB that reports bytes is past it, and hardly any guest is that reports KiB.
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
    names: frozenset[str], is_own_agent: bool, disk_io: DiskIo, uptime_seconds: int | None, stream: Stream
) -> frozenset[str]:
    """Names of the interfaces whose figures are counters since boot and not rates; remembers for the next message.

    Agents give counters when they see an interface for the first time. Our own agent (it has a boot_id) never does.
    When nothing is remembered, the agent's first message is known by its disk rates, which are all 0 in it. An agent
    that was restarted alone, without its guest, cannot be told apart.
    """
    rebooted = (
        stream.uptime_seconds is not None and uptime_seconds is not None and uptime_seconds < stream.uptime_seconds
    )
    remembered = stream.uptime_seconds is not None and not rebooted
    if is_own_agent:
        new: frozenset[str] = frozenset()
    elif remembered:
        new = names - stream.interfaces
    else:
        rates = (
            disk_io.read_bytes_per_sec,
            disk_io.write_bytes_per_sec,
            disk_io.read_ops_per_sec,
            disk_io.write_ops_per_sec,
        )
        new = frozenset() if any(rates) else names
    stream.uptime_seconds = uptime_seconds if uptime_seconds is not None else stream.uptime_seconds or 0
    stream.interfaces = names
    return new


# What a process is asked for, in the order of its row.
_D1 = (
    "id", "parent_id", "name", "executable_path", "command_line", "cpu_usage_percent", "memory_usage_kb",
    "disk_read_bytes", "disk_write_bytes", "status", "start_time",
)  # fmt: skip
_D2 = (
    "pid", "ppid", "name", "exe_path", "cmd_line", "cpu_percent", "memory_kb", "disk_read_bytes", "disk_write_bytes",
    "status", "start_time",
)  # fmt: skip


def process_rows_in_python(
    rows: dict[int, Row],
    processes: Sequence[ProcessD1 | ProcessD2],
    names: tuple[str, ...],
    machine_id: UUID,
    timestamp: datetime,
    chars: tuple[int, int, int, int],
    _words: tuple[str, ...],
    command_line: Callable[[str], str | None],
    status: Callable[[str], str],
    start: Callable[[str | float | None], datetime | float | None],
    latest_start_seconds: float,
) -> None:
    """Add the rows of processes by pid: what compiled.c does, where that is not compiled."""
    name_chars, path_chars, state_chars, _ = chars
    for process in map(attrgetter(*names), processes):
        pid, parent, name, path, line, cpu, memory_kb, read, written, state, began = process
        rows[pid] = (
            machine_id, timestamp, pid, parent, name[:name_chars], path[:path_chars] if path else path,
            command_line(line) if line else line, cpu if cpu is not None and cpu > 0 else 0.0,
            memory_kb, read, written, status(state[:state_chars]),
            began if isinstance(began, float) and 0 < began < latest_start_seconds else start(began),
        )  # fmt: skip


try:
    from guestd_rows import process_rows
except ImportError:
    process_rows = process_rows_in_python


def processes(
    some_d1: Sequence[ProcessD1] | None,
    some_d2: Sequence[ProcessD2] | None,
    machine_id: UUID,
    timestamp: datetime,
    command_lines: CommandLines,
    adjustments: list[str],
    make_rows: Callable[..., None] = process_rows,
) -> list[Row]:
    """One row a pid, the last entry wins. The hot path: most rows of the store are made here."""
    d1 = _first(limits.PROCESSES, adjustments, some_d1)
    d2 = _first(limits.PROCESSES - len(d1), adjustments, some_d2)
    redaction = Redaction()
    kept: Callable[[str], str | None] = _KEPT.get(command_lines, redaction)
    # A line that has none of these words, and is no longer, stays as it is.
    words, plain_chars = (SUSPICIOUS, COMMAND_LINE_CHARS) if kept is redaction else ((), -1)
    chars = (NAME_CHARS, PATH_CHARS, STATE_CHARS, plain_chars)
    rows: dict[int, Row] = {}
    for entries, names in ((d1, _D1), (d2, _D2)):
        make_rows(
            rows, entries, names, machine_id, timestamp, chars, words, kept, _process_status, _moment, _LATEST_SECONDS
        )
    if redaction.lines_cut:
        adjustments.append("text_cut")
    if redaction.lines_cut_short:
        adjustments.append("arguments_left_out")
    return list(rows.values())


# How command lines are kept, where they are not searched for secrets.
_KEPT: dict[str, Callable[[str], str | None]] = {
    "full": lambda line: line[:COMMAND_LINE_CHARS],
    "off": lambda _: None,
}
_STATUS_NAMES = {"run": "running", "sleep": "sleeping", "stop": "stopped"}


@lru_cache(maxsize=256)
def _process_status(status: str) -> str:
    name = status.strip().lower().replace(" ", "-")[:STATE_CHARS]
    return _STATUS_NAMES.get(name, name)


_LATEST_MOMENT = datetime(2200, 1, 1, tzinfo=UTC)
_LATEST_SECONDS = _LATEST_MOMENT.timestamp()


def _moment(claimed: str | float | None) -> datetime | None:
    moment = guest_time(claimed)
    return moment if moment is not None and _EPOCH < moment < _LATEST_MOMENT else None


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


def _ports(entries: Sequence[Port], machine_id: UUID, timestamp: datetime) -> list[Row]:
    """One row per (port, protocol, state, process), with its number of sockets; ordinal is its place when sorted."""
    sockets: dict[tuple[int, str, str, int, str, str, bool], int] = {}
    for entry in entries:
        process_id = entry.process_id if entry.process_id is not None else entry.pid
        key = (
            entry.port, _protocol(entry.protocol[:PROTOCOL_CHARS]), _port_state(entry.state[:STATE_CHARS]),
            -1 if process_id is None else process_id, (entry.process_name or "")[:NAME_CHARS],
            (entry.exe_path or "")[:PATH_CHARS], entry.is_listening,
        )  # fmt: skip
        sockets[key] = sockets.get(key, 0) + (1 if entry.connection_count is None else entry.connection_count)
    return [
        (
            machine_id, timestamp, ordinal, port, protocol, state, None if process_id < 0 else process_id,
            process_name or None, executable_path or None, is_listening, min(sockets[key], 2**31 - 1), timestamp,
        )
        for ordinal, key in enumerate(sorted(sockets))
        for port, protocol, state, process_id, process_name, executable_path, is_listening in (key,)
    ]  # fmt: skip


def _application(app: Application, machine_id: UUID, received_at: datetime) -> Row:
    icon = _icon(app.icon_base64)
    return (
        machine_id, received_at, app.exe_path[:KEY_PATH_CHARS], app.name[:NAME_CHARS], _cut(app.version, NAME_CHARS),
        _cut(app.description, PATH_CHARS), _cut(app.publisher, NAME_CHARS), _moment(app.last_access),
        _moment(app.last_modified), app.access_count, app.usage_minutes, icon,
        (app.icon_format or "png")[:FORMAT_CHARS] if icon else None, app.file_size, app.is_active,
    )  # fmt: skip


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


def _service(service: Service, machine_id: UUID, received_at: datetime) -> Row:
    start = (service.start_type or service.start_mode or "unknown")[:STATE_CHARS].lower()
    process_id = service.process_id if service.process_id is not None else service.pid
    return (
        machine_id, received_at, service.name[:NAME_CHARS], (service.display_name or service.name)[:NAME_CHARS],
        _cut(service.description, PATH_CHARS), _START_TYPES.get(start, start)[:STATE_CHARS],
        (service.service_type or "win32")[:STATE_CHARS], _cut(service.path or service.exe_path, PATH_CHARS),
        None if service.dependencies is None else msgspec.json.encode(
            [name[:NAME_CHARS] for name in service.dependencies[:limits.DEPENDENCIES]]
        ),
        (service.state or "unknown")[:STATE_CHARS].lower().replace(" ", "-")[:STATE_CHARS], process_id,
        service.is_default,
    )  # fmt: skip
