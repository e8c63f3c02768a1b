"""Where machines have their channels: unix sockets in a directory, or those that the domains of libvirt name.

A place tells all channels that there are, and of which the store knows the machine; and when to look again.
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
from guestd.core.tasks import Backoff, retrying
from guestd.hypervisor.domains import Domain

log = structlog.get_logger()

_SOCKET_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.socket")


@dataclass(frozen=True, slots=True)
class Channel:
    """One socket file. Made anew under the same name it is another channel; a changed owner leaves it the same."""

    machine_id: UUID
    path: Path
    inode: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a look has shown: channels of machines that the store knows, and the names of those it does not know."""

    channels: Mapping[UUID, Channel]
    unknown: frozenset[str]


class Place(Protocol):
    """A directory, or libvirt."""

    async def look(self) -> Found | None:
        """All channels there are now; None when that cannot be told at the moment."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a look may show something else, for ever."""


class Directory:
    """Channels are the sockets of a directory that are named `<Machine.id>.socket`."""

    def __init__(self, directory: Path, machine_registry: MachineRegistry) -> None:
        self._directory = directory
        self._machine_registry = machine_registry

    async def look(self) -> Found | None:
        """The sockets there; an absent directory holds none, one that cannot be read tells nothing."""
        try:
            paths = await asyncio.to_thread(_named_sockets, self._directory)
        except OSError as exc:
            log.warning("the channel directory cannot be read", directory=str(self._directory), error=exc.strerror)
            return None
        known = {machine_id: path for machine_id, path in paths.items() if self._machine_registry.knows(machine_id)}
        return Found(await asyncio.to_thread(_sockets, known), frozenset(str(each) for each in paths.keys() - known))

    async def watch(self, changed: Callable[[], None]) -> None:
        """Follow the directory's events."""

        async def follow() -> None:
            try:
                async for _ in watchfiles.awatch(
                    self._directory, watch_filter=None, recursive=False, debounce=100, step=50, rust_timeout=5000
                ):
                    changed()
            except (FileNotFoundError, PermissionError, RuntimeError) as exc:
                raise SourceLost(f"virtio.directory {self._directory}: {exc}") from exc

        def lost(exc: Exception, seconds: float) -> None:
            log.warning("the channel directory cannot be watched", error=str(exc), retry=seconds)

        await retrying(follow, expected=SourceLost, backoff=Backoff(cap_seconds=10), lost=lost)


class _Memory(msgspec.Struct, frozen=True):
    """What the last look found: machines whose channels are wanted by their domains, sockets with inode and time."""

    machines: dict[str, UUID]
    channels: dict[UUID, tuple[str, int, int]]


class Domains:
    """Channels are the virtio ports of libvirt's running domains; a domain is the machine of that internal name.

    `seen` gives the domains of the last look, None before the first; `looked` is set after every look. What was seen
    last is held to while libvirt is away: it is not needed for a channel to go on. It is kept in `memory`, too, for a
    guestd that starts while libvirt or the store is away: a socket that is still the same one is the same machine's.
    """

    def __init__(
        self,
        seen: Callable[[], Sequence[Domain] | None],
        looked: asyncio.Event,
        *,
        machine_registry: MachineRegistry,
        channel_names: Sequence[str],
        memory: Path,
    ) -> None:
        self._seen = seen
        self._looked = looked
        self._machine_registry = machine_registry
        self._channel_names = channel_names
        self._file = memory
        self._memory = _remembered(memory)

    async def look(self) -> Found | None:
        """The sockets of running domains; which machine a domain is, only the store can tell, or has told before."""
        domains, machines = self._seen(), self._machine_registry.named
        if domains is None or machines is None:
            return await self._recalled(domains)
        paths = dict(socket_paths(domains, self._channel_names))
        known = {machines[name]: path for name, path in paths.items() if name in machines}
        channels = await asyncio.to_thread(_sockets, known)
        await self._remember(machines, channels)
        return Found(channels, frozenset(paths.keys() - machines.keys()))

    async def _recalled(self, domains: Sequence[Domain] | None) -> Found | None:
        """What is known of it from before; nobody is called unknown."""
        memory = self._memory
        if memory is None:
            return None
        if domains is not None:
            paths = dict(socket_paths(domains, self._channel_names))
            known = {memory.machines[name]: path for name, path in paths.items() if name in memory.machines}
            return Found(await asyncio.to_thread(_sockets, known), frozenset())
        known = {key: Path(path) for key, (path, _, _) in memory.channels.items() if self._machine_registry.knows(key)}
        found = await asyncio.to_thread(_sockets, known)
        # Another socket under the old name may be another machine's.
        same = {key: each for key, each in found.items() if memory.channels[key][1:] == (each.inode, each.created_ns)}
        return Found(same, frozenset())

    async def _remember(self, machines: Mapping[str, UUID], channels: Mapping[UUID, Channel]) -> None:
        memory = _Memory(
            {name: key for name, key in machines.items() if self._machine_registry.collects(key)},
            {
                key: (str(each.path), each.inode, each.created_ns)
                for key, each in channels.items()
                if self._machine_registry.collects(key)
            },
        )
        if memory == self._memory:
            return
        self._memory = memory
        try:
            await asyncio.to_thread(_write, self._file, msgspec.json.encode(memory))
        except OSError as exc:
            log.warning("what is known of channels cannot be kept", file=str(self._file), error=exc.strerror)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Follow the looks at libvirt."""
        while True:
            await self._looked.wait()
            self._looked.clear()
            changed()


def socket_paths(domains: Iterable[Domain], channel_names: Sequence[str]) -> Iterable[tuple[str, Path]]:
    """Name and agent's socket of each running domain that has one; the first of the names that it has counts."""
    for domain in domains:
        by_name = {channel.name: channel.path for channel in domain.description.channels}
        path = next((by_name[name] for name in channel_names if by_name.get(name)), None)
        if domain.is_active and path is not None:
            yield domain.name, Path(path)


def _remembered(file: Path) -> _Memory | None:
    """None where there is nothing that can be read: then libvirt and the store are waited for."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Memory)
    except (OSError, msgspec.DecodeError):
        return None


def _write(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def _named_sockets(directory: Path) -> dict[UUID, Path]:
    try:
        paths = list(directory.iterdir())
    except FileNotFoundError:
        return {}
    return {UUID(match[1]): path for path in paths if (match := _SOCKET_NAME.fullmatch(path.name))}


def _sockets(paths: Mapping[UUID, Path]) -> dict[UUID, Channel]:
    """Those that are there, told from earlier ones of the same name."""
    channels = {}
    for machine_id, path in paths.items():
        try:
            status = path.stat()
        except OSError:  # gone between listing and looking, or not made yet
            continue
        if stat.S_ISSOCK(status.st_mode):
            channels[machine_id] = Channel(machine_id, path, status.st_ino, status.st_mtime_ns)
    return channels
