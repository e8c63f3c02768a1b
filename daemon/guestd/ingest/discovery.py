"""Channel discovery: unix sockets in a directory, or the sockets of libvirt's running domains.

A discovery lists the channels of machines that the store knows, and signals when the list may have changed.
"""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

import msgspec
import structlog
import watchfiles

from guestd.core.errors import SourceLost
from guestd.core.machines import MachineRegistry
from guestd.core.tasks import Backoff, run_with_retry, warn_once
from guestd.hypervisor.domains import Domain
from guestd.ingest.channel_plan import ChannelSocket
from guestd.wire.line import SYNTAX_ERRORS

log = structlog.get_logger()

_SOCKET_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.socket")


@dataclass(frozen=True, slots=True)
class DiscoveredChannels:
    """Channels of machines that the store knows, and the names of channels whose machine it does not know."""

    channels: Mapping[UUID, ChannelSocket]
    unknown: frozenset[str]


class ChannelDiscovery(Protocol):
    """Finds channels: in a directory, or through libvirt."""

    async def discover(self) -> DiscoveredChannels | None:
        """List the channels that exist now; None while they cannot be determined."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever the channels may have changed; never returns."""


class DirectoryDiscovery:
    """Channels are the sockets in a directory named `<Machine.id>.socket`."""

    def __init__(self, directory: Path, machine_registry: MachineRegistry) -> None:
        self._directory = directory
        self._machine_registry = machine_registry

    async def discover(self) -> DiscoveredChannels | None:
        """List the sockets; none if the directory does not exist, None if it cannot be read."""
        try:
            paths = await asyncio.to_thread(_list_sockets, self._directory)
        except OSError as exc:
            log.warning(
                "channel directory unreadable, keeping the known channels",
                directory=str(self._directory),
                error=exc.strerror,
            )
            return None
        known = {machine_id: path for machine_id, path in paths.items() if self._machine_registry.knows(machine_id)}
        return DiscoveredChannels(
            await asyncio.to_thread(_stat_sockets, known), frozenset(str(each) for each in paths.keys() - known)
        )

    async def watch(self, changed: Callable[[], None]) -> None:
        """Follow the directory's inotify events."""

        async def follow() -> None:
            try:
                async for _ in watchfiles.awatch(
                    self._directory, watch_filter=None, recursive=False, debounce=100, step=50, rust_timeout=5000
                ):
                    changed()
            except (OSError, RuntimeError) as exc:
                raise SourceLost(f"virtio.directory {self._directory}: {exc}") from exc

        def on_failure(exc: Exception, delay_seconds: float) -> None:
            retry_seconds = round(delay_seconds, 1)
            log.warning("cannot watch the channel directory, retrying", error=str(exc), retry_seconds=retry_seconds)

        await run_with_retry(follow, expected=SourceLost, backoff=Backoff(cap_seconds=10), on_failure=on_failure)


class _CachedSocket(msgspec.Struct, frozen=True, array_like=True):
    path: str
    inode: int
    created_ns: int


class _DiscoveryCache(msgspec.Struct, frozen=True):
    """The last discovery: machine IDs by domain name, and each machine's socket."""

    machines: dict[str, UUID]
    channels: dict[UUID, _CachedSocket]


class LibvirtDiscovery:
    """Channels are the virtio ports of libvirt's running domains; a domain's name is its machine's internal name.

    `get_domains` returns the domains of the last snapshot, None before the first; `observed` is set after every
    snapshot. While libvirt is unavailable the last snapshot stays in use: an open channel does not need libvirt. The
    result is also saved to `cache_file`, for a guestd that starts while libvirt or the store is unavailable: a socket
    with the same inode and creation time belongs to the same machine.
    """

    def __init__(
        self,
        get_domains: Callable[[], Sequence[Domain] | None],
        observed: asyncio.Event,
        *,
        machine_registry: MachineRegistry,
        channel_names: Sequence[str],
        cache_file: Path,
    ) -> None:
        self._get_domains = get_domains
        self._observed = observed
        self._machine_registry = machine_registry
        self._channel_names = channel_names
        self._cache_file = cache_file
        self._cache = self._saved = _read_cache(cache_file)
        self._warn_not_saved = warn_once(
            "cannot save the channel cache; a restart without libvirt or store will not find the channels",
            file=str(cache_file),
        )

    async def discover(self) -> DiscoveredChannels | None:
        """List the sockets of running domains; from the cache until libvirt and the store have both answered."""
        domains, machines = self._get_domains(), self._machine_registry.ids_by_name
        if domains is None or machines is None:
            return await self._discover_from_cache(domains)
        paths = dict(list_socket_paths(domains, self._channel_names))
        known = {machines[name]: path for name, path in paths.items() if name in machines}
        channels = await asyncio.to_thread(_stat_sockets, known)
        unread = {machines[name] for name in _list_unread(domains) if name in machines}
        channels |= await self._find_unchanged(unread - channels.keys())
        await self._save(machines, channels)
        return DiscoveredChannels(channels, frozenset(paths.keys() - machines.keys()))

    async def _discover_from_cache(self, domains: Sequence[Domain] | None) -> DiscoveredChannels | None:
        """List the channels known from before; no machine is reported as unknown."""
        cache = self._cache
        if cache is None:
            return None
        if domains is not None:
            paths = dict(list_socket_paths(domains, self._channel_names))
            known = {cache.machines[name]: path for name, path in paths.items() if name in cache.machines}
            unread = {cache.machines[name] for name in _list_unread(domains) if name in cache.machines}
            channels = await asyncio.to_thread(_stat_sockets, known)
            return DiscoveredChannels(channels | await self._find_unchanged(unread), frozenset())
        keys = {key for key in cache.channels if self._machine_registry.knows(key)}
        return DiscoveredChannels(await self._find_unchanged(keys), frozenset())

    async def _find_unchanged(self, machine_ids: Iterable[UUID]) -> dict[UUID, ChannelSocket]:
        """The sockets of these machines that are still the ones in the cache."""
        before = {} if self._cache is None else self._cache.channels
        known = {key: Path(before[key].path) for key in machine_ids if key in before}
        found = await asyncio.to_thread(_stat_sockets, known)
        # A new socket under the old name may belong to another machine.
        return {key: each for key, each in found.items() if before[key] == _describe(each)}

    async def _save(self, machines: Mapping[str, UUID], channels: Mapping[UUID, ChannelSocket]) -> None:
        cache = _DiscoveryCache(
            {name: key for name, key in machines.items() if self._machine_registry.collects(key)},
            {key: _describe(each) for key, each in channels.items() if self._machine_registry.collects(key)},
        )
        self._cache = cache
        if cache == self._saved:
            return
        try:
            await asyncio.to_thread(_write_file, self._cache_file, msgspec.json.encode(cache))
        except OSError as exc:
            # The next discovery tries again.
            self._warn_not_saved(exc, 0.0)
        else:
            self._saved = cache

    async def watch(self, changed: Callable[[], None]) -> None:
        """Follow the snapshots of libvirt."""
        while True:
            await self._observed.wait()
            self._observed.clear()
            changed()


def list_socket_paths(domains: Iterable[Domain], channel_names: Sequence[str]) -> Iterable[tuple[str, Path]]:
    """List name and agent socket of each running domain; the first of `channel_names` that a domain has is used."""
    for domain in domains:
        if domain.description is None:
            continue
        by_name = {channel.name: channel.path for channel in domain.description.channels}
        path = next((by_name[name] for name in channel_names if by_name.get(name)), None)
        if domain.is_active and path is not None:
            yield domain.name, Path(path)


def _list_unread(domains: Iterable[Domain]) -> Iterable[str]:
    """List the names of running domains whose XML could never be read: which sockets they have is unknown."""
    return (domain.name for domain in domains if domain.is_active and domain.description is None)


def _describe(channel: ChannelSocket) -> _CachedSocket:
    return _CachedSocket(str(channel.path), channel.inode, channel.created_ns)


def _read_cache(file: Path) -> _DiscoveryCache | None:
    """Read the cache; None if there is none or it is damaged: discovery then waits for libvirt and the store."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_DiscoveryCache)
    except (OSError, *SYNTAX_ERRORS):
        return None


def _write_file(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def _list_sockets(directory: Path) -> dict[UUID, Path]:
    try:
        paths = list(directory.iterdir())
    except FileNotFoundError:
        return {}
    return {UUID(match[1]): path for path in paths if (match := _SOCKET_NAME.fullmatch(path.name))}


def _stat_sockets(paths: Mapping[UUID, Path]) -> dict[UUID, ChannelSocket]:
    """Stat each path; leaves out those that are not sockets."""
    channels = {}
    for machine_id, path in paths.items():
        try:
            status = path.stat()
        except OSError:  # removed since it was listed, or not created yet
            continue
        if stat.S_ISSOCK(status.st_mode):
            channels[machine_id] = ChannelSocket(machine_id, path, status.st_ino, status.st_mtime_ns)
    return channels
