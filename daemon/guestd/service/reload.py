"""Reload of the configuration on SIGHUP: some keys take effect at once, the others need a restart."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from guestd.core.config import Settings
from guestd.core.errors import ConfigError
from guestd.service import systemd

log = structlog.get_logger()


def _list_keys(table: str) -> tuple[str, ...]:
    return tuple(getattr(Settings(), table).__struct_fields__)


# Read again each time they are needed. All other keys are read once, at the start.
RELOADABLE_KEYS = frozenset(
    {
        "stop_grace_seconds",
        *(f"store.{key}" for key in ("batch_bytes", "batch_frames", "flush_seconds")),
        *(f"{table}.{key}" for table in ("limits", "privacy", "events", "quarantine") for key in _list_keys(table)),
    }
)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """`settings` are in force now; `applied` and `needs_restart` are the changed keys."""

    settings: Settings
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


class ConfigReloader:
    """Reloads the configuration on SIGHUP. `settings` are those in force."""

    def __init__(
        self, settings: Settings, *, read_settings: Callable[[], Settings], on_reload: Callable[[Settings], None]
    ) -> None:
        self.settings = settings
        self._read_settings = read_settings
        self._on_reload = on_reload
        self._requested = asyncio.Event()
        # Before READY=1: an unhandled SIGHUP terminates the process.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._requested.set)

    async def run(self) -> None:
        """Reload on every SIGHUP; never returns."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                await self._reload()
            finally:
                # Whatever became of it: systemd waits for the end of a reload.
                systemd.notify("READY=1")

    async def _reload(self) -> None:
        try:
            read = await asyncio.to_thread(self._read_settings)
        except ConfigError as exc:
            log.error("configuration not reloaded, keeping the previous one; fix the file and reload", error=str(exc))
            return
        result = merge_reloadable(self.settings, read)
        self.settings = result.settings
        self._on_reload(result.settings)
        log.info("configuration reloaded", applied=result.applied)
        if result.needs_restart:
            log.warning("configuration changes need a restart of guestd", keys=result.needs_restart)


def merge_reloadable(running: Settings, read: Settings) -> ReloadResult:
    """Merge the reloadable keys of `read`, the settings in the file, into the running settings. Pure."""
    before = dict(_flatten(running))
    changed = {key for key, value in _flatten(read) if value != before[key]}
    applied = tuple(sorted(changed & RELOADABLE_KEYS))
    return ReloadResult(_replace_keys(running, read, applied), applied, tuple(sorted(changed - RELOADABLE_KEYS)))


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
