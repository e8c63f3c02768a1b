"""How a line becomes a metrics message. Pure.

What a guest may get wrong without losing the frame:

* `\\u0000` in a text and lone surrogates: removed; bytes that are not UTF-8: replaced;
* a value that its field cannot hold: repaired, or left out (`guestd.wire.repair`);
* a list entry that cannot be repaired: refused alone, the rest is stored.

Anything else is a `BadFrame`. No frame below the size cap takes longer than some tens of milliseconds (docs/trust.md).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from guestd.core.errors import BadFrame
from guestd.wire import legacy, limits
from guestd.wire.line import SYNTAX_ERRORS, UTF16_MARKS
from guestd.wire.repair import convert_with_repairs, make_readable, remove_unstorable, shorten_numbers
from guestd.wire.schema import (
    Application,
    Content,
    Disk,
    DiskUsage,
    Interface,
    Metrics,
    Network,
    Port,
    ProcessD1,
    ProcessD2,
    Service,
    System,
)

S = TypeVar("S", bound=Struct)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One list entry that could not become a row."""

    table: str
    key: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A metrics message, the list entries that were refused, and the repairs that were made."""

    metrics: Metrics
    refusals: list[Refusal] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    legacy_dialect: str | None = None
    """D0 or D3 for a message in one of these dialects."""

    @property
    def dialect(self) -> str:
        """D0 to D3 of docs/wire.md: D2 has its lists beside the system, D1 within it."""
        content = self.metrics.data
        is_d2 = any(each is not None for each in (content.processes, content.ports, content.windows_services))
        return self.legacy_dialect or ("D2" if is_d2 else "D1")


_decoder = msgspec.json.Decoder(Metrics)


def decode(payload: bytes) -> Decoded:
    """Decode a line as a metrics message; raises `BadFrame` with reason json, shape or type."""
    if len(payload) > limits.VALUES and payload.count(b",") > limits.VALUES:
        raise BadFrame("shape", f"more than {limits.VALUES} values")
    text = remove_unstorable(payload)
    decoded = _decode_with_repairs(text, ["bad_escape"] if text != payload else [])
    if decoded.metrics.type != "metrics":
        raise _not_metrics(decoded.metrics.type)
    return decoded


def _decode_with_repairs(text: bytes, repairs: list[str]) -> Decoded:
    """Decode the text as it is, else with its values repaired."""
    try:
        return _decode_once(text, repairs)
    except SYNTAX_ERRORS as exc:
        first_error = exc
    if text.startswith(UTF16_MARKS) or text.lstrip(b"\0").startswith(b"{\0"):
        raise BadFrame("json", "UTF-16 or UTF-32; an agent must write UTF-8")
    if (repaired := make_readable(text)) != text:
        with suppress(*SYNTAX_ERRORS):
            return _decode_once(repaired, [*repairs, "unreadable_value"])
    raise BadFrame("json", f"{type(first_error).__name__}: {first_error}"[:300]) from first_error


def _decode_once(text: bytes, repairs: list[str]) -> Decoded:
    try:
        return Decoded(_decoder.decode(text), [], repairs)
    except msgspec.ValidationError:
        return _decode_parts(text, repairs)


def _not_metrics(found: object) -> BadFrame:
    return BadFrame("type", f"not a metrics message: type {str(found)[:40]!r}")


# The objects that contain the lists, and the lists whose entries are decoded one by one: table, type, key, maximum.
_BRANCHES: dict[str, type[Struct]] = {
    "data": Content,
    "data.system": System,
    "data.system.disk": Disk,
    "data.system.network": Network,
}
_LISTS: dict[str, tuple[str, type[Struct], str, int]] = {
    "data.system.processes": ("ProcessSnapshot", ProcessD1, "id", limits.PROCESSES),
    "data.processes": ("ProcessSnapshot", ProcessD2, "pid", limits.PROCESSES),
    "data.system.ports": ("PortUsage", Port, "port", limits.SOCKETS),
    "data.ports": ("PortUsage", Port, "port", limits.SOCKETS),
    "data.system.windows_services": ("WindowsService", Service, "name", limits.SERVICES),
    "data.windows_services": ("WindowsService", Service, "name", limits.SERVICES),
    "data.applications": ("ApplicationUsage", Application, "exe_path", limits.APPLICATIONS),
    "data.system.disk.usage_stats": ("SystemMetrics", DiskUsage, "mount_point", limits.DISKS),
    "data.system.network.interfaces": ("SystemMetrics", Interface, "name", limits.INTERFACES),
}
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw] | None)
_ENTRIES = {entry_type: msgspec.json.Decoder(entry_type) for _, entry_type, _, _ in _LISTS.values()}


def _decode_parts(text: bytes, repairs: list[str]) -> Decoded:
    """Decode a frame with wrong values, part by part: a value is repaired or left out, or its list entry refused."""
    found = _PartReader(list(repairs))
    text = shorten_numbers(text)
    msgspec.json.decode(text, type=msgspec.Raw)  # raises if any of it is not JSON
    try:
        members = _OBJECT.decode(text)
        if (as_d1 := legacy.convert_to_d1(members)) is not None:
            legacy_dialect = "D3" if "system_metrics" in members else "D0"
            return replace(_decode_once(as_d1, [*repairs, "older_dialect"]), legacy_dialect=legacy_dialect)
        kind = bytes(members.get("type", b"null"))
        if kind != b'"metrics"':
            raise _not_metrics(kind[:60].decode(errors="replace").strip('"'))
        return Decoded(found.object("", text, Metrics), found.refusals, found.repairs)
    except msgspec.ValidationError as exc:
        raise BadFrame("shape", str(exc)[:300]) from exc


@dataclass(slots=True)
class _PartReader:
    """Decodes a message part by part, and collects its repairs and refusals."""

    repairs: list[str]
    refusals: list[Refusal] = field(default_factory=list)
    repaired: int = 0

    def object(self, path: str, raw: bytes | msgspec.Raw, target: type[S]) -> S:
        """An object of `_BRANCHES`. Raises msgspec.ValidationError when it is not one, or lacks a required field."""
        members, values = _OBJECT.decode(raw), {}
        for each in msgspec.structs.fields(target):
            if each.encode_name in members:
                try:
                    values[each.name] = self._part(f"{path}.{each.encode_name}".lstrip("."), members, each)
                except msgspec.ValidationError:
                    if each.required:
                        raise
                    self.repairs.append("field_left_out")
        try:
            return target(**values)
        except TypeError as exc:
            raise msgspec.ValidationError(f"{exc} in {path or 'the message'}") from exc

    def _part(self, path: str, members: dict[str, msgspec.Raw], each: msgspec.structs.FieldInfo) -> Any:
        raw = members[each.encode_name]
        if path in _LISTS:
            return self._entries(path, raw)
        if path in _BRANCHES:
            return self.object(path, raw, _BRANCHES[path])
        if len(memoryview(raw)) > limits.PART_BYTES:
            raise msgspec.ValidationError(f"more than {limits.PART_BYTES} bytes in {path}")
        return convert_with_repairs(raw, each.type, self.repairs)

    def _entries(self, path: str, raw: msgspec.Raw) -> list[Struct] | None:
        table, entry_type, key, most = _LISTS[path]
        try:
            entries = _LIST.decode(raw)
        except msgspec.ValidationError as exc:
            raise BadFrame("shape", f"{exc} in {path}"[:300]) from exc
        if entries is None:
            raise msgspec.ValidationError(f"null in {path}")
        if len(entries) > most:
            self.repairs.append("list_cut")
        fitting = []
        for entry in entries[:most]:
            try:
                fitting.append(self._entry(entry, entry_type))
            except msgspec.ValidationError as exc:
                self._refuse(table, _key_of(entry, key), str(exc))
        return fitting

    def _entry(self, raw: msgspec.Raw, target: type[Struct]) -> Struct:
        try:
            return _ENTRIES[target].decode(raw)
        except msgspec.ValidationError:
            self.repaired += 1
            if self.repaired > limits.REPAIRED:
                raise
        return convert_with_repairs(raw, target, self.repairs)

    def _refuse(self, table: str, key: str | None, reason: str) -> None:
        if len(self.refusals) == limits.REFUSALS:
            raise BadFrame("shape", f"more than {limits.REFUSALS} wrong list entries; the last: {reason}"[:300])
        self.refusals.append(Refusal(table, key and key[:100], reason[:200]))


def _key_of(raw: msgspec.Raw, key: str) -> str | None:
    """The key of a list entry, as text: a string itself, another value as JSON; None when it has none."""
    with suppress(msgspec.ValidationError):
        raw = _OBJECT.decode(raw).get(key, msgspec.Raw(b"null"))
    if len(memoryview(raw)) > limits.KEY_PATH_CHARS:
        return bytes(raw)[:100].decode(errors="replace")
    try:
        value = msgspec.json.decode(raw)
    except msgspec.ValidationError:  # a number that no type can hold
        return bytes(raw).decode()
    return value if value is None or isinstance(value, str) else bytes(raw).decode(errors="replace")
