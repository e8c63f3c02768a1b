"""Domains and channels against the store's machines: which guest has no way to us, whose way leads to no machine."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

from guestd.core.config import Settings
from guestd.core.errors import ConfigError, SourceLost, StoreUnavailable
from guestd.core.machines import MachineRegistry, RegisteredMachine
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.hypervisor.connection import Hypervisor
from guestd.hypervisor.domains import Domain
from guestd.ingest.discovery import DirectoryDiscovery, list_socket_paths
from guestd.store.connection import connection_to, sorted_errors
from guestd.store.machines import read_machines
from guestd.telemetry.registry import VmMetrics

SHOWN = 5
_DIALECT = re.compile(r'^guest_agent_info\{[^}]*dialect="([^"]*)"', re.MULTILINE)


async def examined(settings: Settings) -> AsyncIterator[Finding]:
    """libvirt, each channel, and what there is at its ends. Without a store nobody can tell whose they are."""
    domains: Sequence[Domain] | None = None
    if settings.libvirt.uri:
        try:
            domains = await _domains(settings.libvirt.uri)
        except (SourceLost, ConfigError) as exc:
            yield libvirt_lost(settings.libvirt.uri, str(exc))
        else:
            yield ok("libvirt", f"{settings.libvirt.uri} answers: {len(domains)} domains")
    try:
        members = await _members(settings.store.dsn)
    except StoreUnavailable:
        return
    if domains is not None:
        for finding in of_domains(domains, members, settings.libvirt.channel_names):
            yield finding
    elif settings.virtio.discovery == "directory":
        async for finding in _of_directory(Path(settings.virtio.directory), members):
            yield finding


def libvirt_lost(uri: str, exc: str) -> Finding:
    """The fault of a libvirt that does not let us in, with the fix for what it says."""
    if "ermission denied" in exc or "authentication" in exc or "polkit" in exc:
        return fault(
            "libvirt", exc, "add guestd's user to the group libvirt: usermod -aG libvirt guestd; restart guestd"
        )
    if "user record" in exc or "group record" in exc:
        fix = "libvirtd must know guestd's user and group: useradd them by the same numbers where libvirtd runs"
        return fault("libvirt", exc, fix)
    if "not installed" in exc:
        return fault("libvirt", exc, "install guestd[libvirt], or leave libvirt.uri empty")
    return fault("libvirt", exc, f"systemctl start libvirtd (or virtqemud.socket), or correct libvirt.uri (now {uri})")


async def _domains(uri: str) -> Sequence[Domain]:
    hypervisor = Hypervisor(uri, VmMetrics())
    async with hypervisor.connect():
        return await hypervisor.observe()


async def _members(dsn: str) -> Sequence[RegisteredMachine]:
    async with connection_to(dsn) as connection, sorted_errors():
        return await read_machines(connection)


def of_domains(
    domains: Sequence[Domain], members: Sequence[RegisteredMachine], channel_names: Sequence[str]
) -> Iterator[Finding]:
    """What is amiss with running domains; channel by channel."""
    known = {member.internal_name for member in members}
    running = [domain for domain in domains if domain.is_active]
    unknown = [domain.name for domain in running if domain.name not in known]
    if unknown:
        fix = "give their Machine rows that internalName, or leave them: guestd does not read them"
        yield warning("machines", f"domains that the store does not know: {_some(unknown)}", fix)
    paths = dict(list_socket_paths(running, channel_names))
    without = [domain.name for domain in running if domain.name not in paths]
    if without:
        fix = f"virsh attach-device DOMAIN channel.xml --persistent, with a unix channel named {channel_names[0]}"
        yield warning("channels", f"domains without an agent's channel: {_some(without)}", fix)
    yield from _deaf(running, channel_names)
    yield from _sockets(paths)


def _deaf(running: Sequence[Domain], channel_names: Sequence[str]) -> Iterator[Finding]:
    unopened = [
        domain.name
        for domain in running
        if any(channel.name in channel_names and channel.is_open is False for channel in domain.description.channels)
    ]
    if unopened:
        fix = "start the agent in the guest (systemctl start guestd-agent), or install it"
        yield warning("agents", f"nobody in the guest has opened the channel: {_some(unopened)}", fix)


async def _of_directory(directory: Path, members: Sequence[RegisteredMachine]) -> AsyncIterator[Finding]:
    machine_registry = MachineRegistry()
    machine_registry.replace(members)
    found = await DirectoryDiscovery(directory, machine_registry).discover()
    if found is None:
        return
    if found.unknown:
        fix = "add the Machine of that id to the store, or remove the socket"
        yield warning("machines", f"sockets of machines that the store does not know: {_some(found.unknown)}", fix)
    for finding in _sockets({str(key): channel.path for key, channel in found.channels.items()}):
        yield finding


def _sockets(paths: Mapping[str, Path]) -> Iterator[Finding]:
    """Whether guestd may connect to each; it is not tried, for a second client of a channel hears nothing."""
    refused = [name for name, path in paths.items() if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
    gone = [name for name, path in paths.items() if not _is_socket(path)]
    if refused:
        fix = "let guestd's user write them: the group of QEMU's sockets (kvm or libvirt-qemu) in SupplementaryGroups="
        yield fault("channels", f"sockets that this user may not open: {_some(refused)}", fix)
    if gone:
        fix = "restart the domain: QEMU makes the socket; guestd's user must be able to enter its directory"
        yield fault("channels", f"sockets that are not there: {_some(gone)}", fix)
    if paths and not refused and not gone:
        yield ok("channels", f"{len(paths)} sockets are there and may be opened")


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def of_agents(metrics: str) -> Iterator[Finding]:
    """Which agent each guest has, as the running guestd has heard it."""
    dialects = Counter(_DIALECT.findall(metrics))
    if dialects:
        spoken = ", ".join(f"{count} speak {dialect}" for dialect, count in sorted(dialects.items()))
        yield ok("agents", spoken)


def _some(names: Sequence[str] | frozenset[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
