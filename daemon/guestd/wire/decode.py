"""How a line becomes a metrics message. Pure.

What a guest may get wrong without losing the frame:

* half a line directly followed by the whole line (the agent's resend after a short write): the whole line is taken;
* `\\u0000` in a text and lone surrogates: removed; bytes that are no UTF-8: replaced;
* a value that its field cannot hold: mended, or left out (`mending`);
* one list entry that cannot be mended: refused by itself, the rest is kept.

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
from guestd.wire.line import SYNTAX_ERRORS, is_value, restarts
from guestd.wire.repair import fitted, readable, shortened, storable
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
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A metrics message, the entries refused on the way, and the repairs that were needed."""

    metrics: Metrics
    refusals: list[Refusal] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    older: str | None = None
    """D0 or D3, where it was written in one of these."""

    @property
    def dialect(self) -> str:
        """D0 to D3, by docs/wire.md: D2 has its lists beside the system and not within."""
        content = self.metrics.data
        is_d2 = any(each is not None for each in (content.processes, content.ports, content.windows_services))
        return self.older or ("D2" if is_d2 else "D1")


_decoder = msgspec.json.Decoder(Metrics)


def decode(payload: bytes) -> Decoded:
    """One line to a metrics message; raises `BadFrame` with reason json, shape or type."""
    if len(payload) > limits.VALUES and payload.count(b",") > limits.VALUES:
        raise BadFrame("shape", f"more than {limits.VALUES} values")
    text = storable(payload)
    decoded = _decode_somehow(text, ["bad_escape"] if text != payload else [])
    if decoded.metrics.type != "metrics":
        raise _not_metrics(decoded.metrics.type)
    return decoded


def _decode_somehow(text: bytes, repairs: list[str]) -> Decoded:
    """As it is; else the whole message behind the half of one; else what can be read of it."""
    try:
        return _decode_once(text, repairs)
    except SYNTAX_ERRORS as exc:
        first_error = exc
    for candidate in filter(is_value, restarts(text)):
        with suppress(*SYNTAX_ERRORS):
            return _decode_once(candidate, [*repairs, "restarted_line"])
    if (mended := readable(text)) != text:
        with suppress(*SYNTAX_ERRORS):
            return _decode_once(mended, [*repairs, "unreadable_value"])
    raise BadFrame("json", f"{type(first_error).__name__}: {first_error}"[:300]) from first_error


def _decode_once(text: bytes, repairs: list[str]) -> Decoded:
    try:
        return Decoded(_decoder.decode(text), [], repairs)
    except msgspec.ValidationError:
        return _part_by_part(text, repairs)


def _not_metrics(found: object) -> BadFrame:
    return BadFrame("type", f"not a metrics message: type {str(found)[:40]!r}")


# The objects on the way to the lists, and the lists whose entries are judged one by one: table, type, key, how many.
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


def _part_by_part(text: bytes, repairs: list[str]) -> Decoded:
    """The slow way for a frame with a wrong value in it: what is wrong is mended, left out or refused by itself."""
    found = _Found(list(repairs))
    text = shortened(text)
    msgspec.json.decode(text, type=msgspec.Raw)  # all of it, or it is no JSON
    try:
        members = _OBJECT.decode(text)
        if (as_d1 := legacy.as_d1(members)) is not None:
            older = "D3" if "system_metrics" in members else "D0"
            return replace(_decode_once(as_d1, [*repairs, "older_dialect"]), older=older)
        kind = bytes(members.get("type", b"null"))
        if kind != b'"metrics"':
            raise _not_metrics(kind[:60].decode(errors="replace").strip('"'))
        return Decoded(found.object("", text, Metrics), found.refusals, found.repairs)
    except msgspec.ValidationError as exc:
        raise BadFrame("shape", str(exc)[:300]) from exc


@dataclass(slots=True)
class _Found:
    """What is noted while a message is read part by part."""

    repairs: list[str]
    refusals: list[Refusal] = field(default_factory=list)
    mended: int = 0

    def object(self, path: str, raw: bytes | msgspec.Raw, wanted: type[S]) -> S:
        """One of the branches. Raises msgspec.ValidationError when it is none, or lacks what it must have."""
        members, values = _OBJECT.decode(raw), {}
        for each in msgspec.structs.fields(wanted):
            if each.encode_name in members:
                try:
                    values[each.name] = self._part(f"{path}.{each.encode_name}".lstrip("."), members, each)
                except msgspec.ValidationError:
                    if each.required:
                        raise
                    self.repairs.append("field_left_out")
        try:
            return wanted(**values)
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
        return fitted(raw, each.type, self.repairs)

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
        kept = []
        for entry in entries[:most]:
            try:
                kept.append(self._entry(entry, entry_type))
            except msgspec.ValidationError as exc:
                self._refuse(table, _key_of(entry, key), str(exc))
        return kept

    def _entry(self, raw: msgspec.Raw, wanted: type[Struct]) -> Struct:
        try:
            return _ENTRIES[wanted].decode(raw)
        except msgspec.ValidationError:
            self.mended += 1
            if self.mended > limits.MENDED:
                raise
        return fitted(raw, wanted, self.repairs)

    def _refuse(self, table: str, key: str, reason: str) -> None:
        if len(self.refusals) == limits.REFUSALS:
            raise BadFrame("shape", f"more than {limits.REFUSALS} wrong list entries; the last: {reason}"[:300])
        self.refusals.append(Refusal(table, key[:100], reason[:200]))


def _key_of(raw: msgspec.Raw, key: str) -> str:
    """What an entry says it is, as text."""
    with suppress(msgspec.ValidationError):
        raw = _OBJECT.decode(raw).get(key, msgspec.Raw(b"null"))
    if len(memoryview(raw)) > limits.KEY_PATH_CHARS:
        return bytes(raw)[:100].decode(errors="replace")
    try:
        return str(msgspec.json.decode(raw))
    except msgspec.ValidationError:  # a number that no type holds
        return bytes(raw)[:100].decode()
