"""What a changed configuration means for a guestd that runs: which keys are in force at once. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from guestd.core.config import Settings


def _list_keys(table: str) -> tuple[str, ...]:
    return tuple(getattr(Settings(), table).__struct_fields__)


# What is asked for each time that it is needed. The rest is wired in at the start.
RELOADABLE_KEYS = frozenset(
    {
        "stop_grace_seconds",
        *(f"store.{key}" for key in ("batch_bytes", "batch_frames", "flush_seconds")),
        *(f"{table}.{key}" for table in ("limits", "privacy", "events", "quarantine") for key in _list_keys(table)),
    }
)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """`settings` are those in force now; of the changed keys, which were taken and which wait for a restart."""

    settings: Settings
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def merge_reloadable(running: Settings, read: Settings) -> ReloadResult:
    """What is in force when `read` is what the file says now."""
    changed = {key for key, value in _flatten(read) if value != dict(_flatten(running))[key]}
    taken = tuple(sorted(changed & RELOADABLE_KEYS))
    return ReloadResult(_replace_keys(running, read, taken), taken, tuple(sorted(changed - RELOADABLE_KEYS)))


def _flatten(settings: Settings) -> Iterator[tuple[str, Any]]:
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Struct):
            yield from ((f"{name}.{key}", getattr(value, key)) for key in value.__struct_fields__)
        else:
            yield name, value


def _replace_keys(running: Settings, read: Settings, keys: tuple[str, ...]) -> Settings:
    for key in keys:
        table, _, name = key.rpartition(".")
        if table:
            part = msgspec.structs.replace(getattr(running, table), **{name: getattr(getattr(read, table), name)})
            running = msgspec.structs.replace(running, **{table: part})
        else:
            running = msgspec.structs.replace(running, **{name: getattr(read, name)})
    return running
