"""The wire structs of every dialect, and how a line becomes one of them.

Pure. Dialects D1 (real agents) and D2 (the platform's interface) share one tree: where they differ in place or name,
both are optional here and `normalise` takes the one that is set. Unknown fields are ignored, so that old daemons
survive new agents. What a guest may get wrong without losing the frame:

* half a line directly followed by the whole line (the agent's resend after a short write): the whole line is taken;
* `\\u0000` in a text and lone surrogates: removed;
* one list entry of the wrong shape: refused by itself, the rest is kept.

Anything else is a `BadFrame`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from guestd.errors import BadFrame

Int4 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
ProcessId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Amount = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PortNumber = Annotated[int, Meta(ge=0, le=65535)]
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

    mount_point: str
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

    name: str
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
    name: str
    memory_usage_kb: Amount
    cpu_usage_percent: Number = None
    parent_id: ProcessId | None = None
    executable_path: str | None = None
    command_line: str | None = None
    disk_read_bytes: Amount | None = None
    disk_write_bytes: Amount | None = None
    status: str = "Unknown"
    start_time: str | float | None = None


class ProcessD2(Struct, frozen=True, gc=False):
    """One process as the platform's interface names its fields."""

    pid: ProcessId
    name: str
    memory_kb: Amount
    cpu_percent: Number = None
    ppid: ProcessId | None = None
    exe_path: str | None = None
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
    process_name: str | None = None
    exe_path: str | None = None
    is_listening: bool = False
    connection_count: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class Service(Struct, frozen=True, gc=False):
    """One service; D1 names first, D2's beside them."""

    name: str
    display_name: str | None = None
    state: str | None = None
    start_mode: str | None = None
    start_type: str | None = None
    service_type: str | None = None
    process_id: ProcessId | None = None
    pid: ProcessId | None = None
    path: str | None = None
    exe_path: str | None = None
    description: str | None = None
    dependencies: list[str] | None = None
    is_default: bool = False


class Application(Struct, frozen=True, gc=False):
    """One application (D2 and our agent)."""

    exe_path: str
    name: str
    version: str | None = None
    description: str | None = None
    publisher: str | None = None
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
class Refusal:
    """One list entry that could not become a row."""

    table: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A metrics message, the entries refused on the way, and the repairs that were needed."""

    metrics: Metrics
    refusals: list[Refusal] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)


_decoder = msgspec.json.Decoder(Metrics)
_untyped = msgspec.json.Decoder()


def decode(payload: bytes) -> Decoded:
    """One line to a metrics message; raises `BadFrame` with reason json, shape or type."""
    text = _storable(payload)
    repairs = ["bad_escape"] if text != payload else []
    try:
        metrics, refusals = _decode_once(text)
    except _SYNTAX as why:
        metrics, refusals = _restarted(text, why)
        repairs.append("restarted_line")
    if metrics.type != "metrics":
        raise BadFrame("type", f"not a metrics message: type {metrics.type[:40]!r}")
    return Decoded(metrics, refusals, repairs)


# A ValidationError is a DecodeError too: of these it can only be a number that no type holds.
_SYNTAX = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _decode_once(payload: bytes) -> tuple[Metrics, list[Refusal]]:
    try:
        return _decoder.decode(payload), []
    except msgspec.ValidationError:
        return _entry_by_entry(payload)


def _restarted(payload: bytes, why: Exception) -> tuple[Metrics, list[Refusal]]:
    """The whole message behind the half of one; raise `BadFrame` for the first error if there is none."""
    for candidate in _restarts(payload):
        try:
            return _decode_once(candidate)
        except _SYNTAX:
            continue
    reason = "shape" if isinstance(why, msgspec.ValidationError) else "json"
    raise BadFrame(reason, f"{type(why).__name__}: {why}"[:300]) from why


# The escapes of a JSON text. Passed over: those without a number (a second backslash begins nothing) and whole pairs.
# First group: what PostgreSQL cannot store, NUL and half a pair. Second group: escapes that are cut short.
_ESCAPE = re.compile(
    rb"(?:\\[^u])+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u0000|\\u[dD][89a-fA-F][0-9a-fA-F]{2})|((?:\\u[0-9a-fA-F]{0,3}(?![0-9a-fA-F]))+)",
)


def _storable(payload: bytes) -> bytes:
    """Without the escapes that PostgreSQL cannot store."""
    # Most encoders write text as it is: one look is all that most frames cost.
    if rb"\u" not in payload:
        return payload
    # A short escape stays an error: closing a gap behind it must not make a new one of it.
    return _ESCAPE.sub(lambda found: b"" if found[1] else b"%s!" % found[2] if found[2] else found[0], payload)


# A guest cannot make the search for a whole message in a line long.
_MAX_RESTARTS = 8


def _restarts(payload: bytes) -> Iterator[bytes]:
    end = len(payload)
    for _ in range(_MAX_RESTARTS):
        # A quote inside a JSON text is escaped, so these bytes can only begin an object.
        end = payload.rfind(b'{"type":', 1, end)
        if end <= 0:
            break
        yield payload[end:]


_LISTS: dict[tuple[str, ...], tuple[str, type[Struct], str]] = {
    ("system", "processes"): ("ProcessSnapshot", ProcessD1, "id"),
    ("processes",): ("ProcessSnapshot", ProcessD2, "pid"),
    ("system", "ports"): ("PortUsage", Port, "port"),
    ("ports",): ("PortUsage", Port, "port"),
    ("system", "windows_services"): ("WindowsService", Service, "name"),
    ("windows_services",): ("WindowsService", Service, "name"),
    ("applications",): ("ApplicationUsage", Application, "exe_path"),
}


# What is refused is kept for the operator; a guest cannot make that long.
_MAX_REFUSALS = 1000


def _entry_by_entry(payload: bytes) -> tuple[Metrics, list[Refusal]]:
    """The slow way for a frame with a wrong value in it: list entries are judged one by one."""
    message = _untyped.decode(payload)
    refusals: list[Refusal] = []
    if isinstance(message, dict) and isinstance(message.get("data"), dict):
        for path, (table, entry_type, key) in _LISTS.items():
            _refuse_bad_entries(message["data"], path, table, entry_type, key, refusals)
    try:
        return msgspec.convert(message, Metrics), refusals
    except msgspec.ValidationError as why:
        if isinstance(message, dict) and message.get("type") != "metrics":
            raise BadFrame("type", f"not a metrics message: type {str(message.get('type'))[:40]!r}") from why
        raise BadFrame("shape", str(why)[:300]) from why


def _refuse_bad_entries(
    content: dict[str, Any],
    path: tuple[str, ...],
    table: str,
    entry_type: type[Struct],
    key: str,
    refusals: list[Refusal],
) -> None:
    *parents, last = path
    for parent in parents:
        inner = content.get(parent)
        if not isinstance(inner, dict):
            return
        content = inner
    entries = content.get(last)
    if not isinstance(entries, list):
        return
    kept = []
    for entry in entries:
        try:
            msgspec.convert(entry, entry_type)
        except msgspec.ValidationError as why:
            if len(refusals) == _MAX_REFUSALS:
                raise BadFrame("shape", f"more than {_MAX_REFUSALS} wrong list entries; the last: {why}"[:300]) from why
            name = entry.get(key) if isinstance(entry, dict) else entry
            refusals.append(Refusal(table, str(name)[:100], str(why)[:200]))
        else:
            kept.append(entry)
    content[last] = kept


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
_TYPE = re.compile(rb'\s*\{\s*"type"\s*:\s*"([A-Za-z_]{1,40})"')
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
    """The type of a line that is known not to carry metrics, else None (metrics, or not known before decoding)."""
    if _RESPONSE.match(line):
        return "response"
    match = _TYPE.match(line)
    name = match.group(1).decode() if match else ""
    # Such a line may have been cut short, and a metrics line written behind it.
    return name if name in OTHER_TYPES and b'{"type":"metrics"' not in line else None


def is_whole(line: bytes) -> bool:
    """Whether a line is one JSON value or ends with one: the first line of a connection may be the rest of one."""
    return is_json(line) or any(map(is_json, _restarts(_storable(line))))


def is_json(line: bytes) -> bool:
    """Whether a line is one whole JSON value."""
    try:
        msgspec.json.decode(_storable(line), type=msgspec.Raw)
    except _SYNTAX:
        return False
    return True
