"""Converts the oldest dialects to D1. Pure.

D0 has no type: `{"timestamp": unix seconds, "metrics": {...}}`; its `metrics` is D1's `data.system`.
D3 is the dialect of the platform's documents: the same under `system_metrics`, with some other names.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

Members = Mapping[str, msgspec.Raw]

_NAMES_OF_LOAD = {"load1min": "load_1min", "load5min": "load_5min", "load15min": "load_15min"}
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def convert_to_d1(members: Members) -> bytes | None:
    """The members of a D0 or D3 message as the text of a D1 message; None for any other message.

    Raises msgspec.ValidationError when a required member has another shape.
    """
    if "type" in members or "data" in members:
        return None
    if "metrics" in members:
        return _d1(members, members["metrics"])
    if "system_metrics" in members:
        inner = _OBJECT.decode(members["system_metrics"])
        return _d1(inner, _system_of_d3(_OBJECT.decode(inner.get("metrics", b"null"))))
    return None


def _d1(members: Members, system: object) -> bytes:
    claims = {name: members[name] for name in ("timestamp", "vmId") if name in members}
    return msgspec.json.encode({"type": "metrics", **claims, "data": {"system": system}})


def _system_of_d3(metrics: Members) -> dict[str, object]:
    system: dict[str, object] = dict(metrics)
    if "network" in metrics:
        entries = _LIST.decode(_OBJECT.decode(metrics["network"]).get("stats", b"[]"))
        system["network"] = {"interfaces": [_rename_members(entry, {"interface": "name"}) for entry in entries]}
    if "system" in metrics:
        state: dict[str, object] = dict(
            _rename_members(_OBJECT.decode(metrics["system"]), {"uptime": "uptime_seconds"})
        )
        if isinstance(load := state.get("load_average"), msgspec.Raw):
            state["load_average"] = _load(load)
        system["system"] = state
    return system


def _load(raw: msgspec.Raw) -> object:
    return None if bytes(raw) == b"null" else _rename_members(_OBJECT.decode(raw), _NAMES_OF_LOAD)


def _rename_members(members: Members, names: Mapping[str, str]) -> dict[str, msgspec.Raw]:
    return {names.get(name, name): value for name, value in members.items()}
