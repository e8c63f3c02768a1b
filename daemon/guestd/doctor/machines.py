"""Checks of libvirt, channels and agents: guests without a channel, channels without a machine."""

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
from guestd.hypervisor.domains import Domain
from guestd.hypervisor.driver import Hypervisor
from guestd.ingest.discovery import DirectoryDiscovery, list_socket_paths
from guestd.store.connection import connection_to
from guestd.store.machines import read_machines
from guestd.telemetry.registry import VmMetrics

SHOWN = 5
_DIALECT = re.compile(r'^guest_agent_info\{[^}]*dialect="([^"]*)"', re.MULTILINE)


async def check_machines(settings: Settings) -> AsyncIterator[Finding]:
    """Check libvirt and each channel. Without the store a channel's machine is unknown, and only libvirt is checked."""
    domains: Sequence[Domain] | None = None
    if settings.libvirt.uri:
        try:
            domains = await _read_domains(settings.libvirt.uri)
        except (SourceLost, ConfigError) as exc:
            yield explain_libvirt_error(settings.libvirt.uri, str(exc))
        else:
            yield ok("libvirt", f"{settings.libvirt.uri} answers: {len(domains)} domains")
    try:
        machines = await _read_machines(settings.store.dsn)
    except StoreUnavailable:
        return
    if domains is not None:
        for finding in check_domains(domains, machines, settings.libvirt.channel_names):
            yield finding
    elif settings.virtio.discovery == "directory":
        async for finding in _check_directory(Path(settings.virtio.directory), machines):
            yield finding


def explain_libvirt_error(uri: str, error: str) -> Finding:
    """Find the fix for a libvirt that cannot be reached."""
    if "ermission denied" in error or "authentication" in error or "polkit" in error:
        return fault(
            "libvirt",
            error,
            "add guestd's user to the group libvirt: guestd setup, or usermod -aG libvirt guestd; restart guestd",
        )
    if "user record" in error or "group record" in error:
        fix = "create guestd's user and group where libvirtd runs, with the same IDs: groupadd, useradd"
        return fault("libvirt", error, fix)
    if "not installed" in error:
        return fault("libvirt", error, "install guestd[libvirt], or leave libvirt.uri empty")
    return fault(
        "libvirt", error, f"systemctl start libvirtd (or virtqemud.socket), or correct libvirt.uri (now {uri})"
    )


async def _read_domains(uri: str) -> Sequence[Domain]:
    hypervisor = Hypervisor(uri, VmMetrics())
    async with hypervisor.connect():
        return await hypervisor.observe()


async def _read_machines(dsn: str) -> Sequence[RegisteredMachine]:
    async with connection_to(dsn) as connection:
        return await read_machines(connection)


def check_domains(
    domains: Sequence[Domain], machines: Sequence[RegisteredMachine], channel_names: Sequence[str]
) -> Iterator[Finding]:
    """Check running domains and their channels."""
    known = {machine.internal_name for machine in machines}
    running = [domain for domain in domains if domain.is_active]
    unknown = [domain.name for domain in running if domain.name not in known]
    if unknown:
        fix = "set internalName of their Machine rows, or ignore them: guestd does not read them"
        yield warning("machines", f"domains without a Machine in the store: {_format_names(unknown)}", fix)
    if problems := {domain.name: domain.problem for domain in domains if domain.problem is not None}:
        name, problem = min(problems.items())
        fix = f"virsh dumpxml {name} prints what libvirt has: correct it; the rest of guestd does not need it"
        yield warning("machines", f"domains whose XML cannot be read: {_format_names(list(problems))}: {problem}", fix)
    paths = dict(list_socket_paths(running, channel_names))
    without = [domain.name for domain in running if domain.description is not None and domain.name not in paths]
    if without:
        fix = f"virsh attach-device DOMAIN channel.xml --persistent, with a unix channel named {channel_names[0]}"
        yield warning("channels", f"domains without the agent's channel: {_format_names(without)}", fix)
    yield from _check_agent_ports(running, channel_names)
    yield from _check_sockets(paths)


def _check_agent_ports(running: Sequence[Domain], channel_names: Sequence[str]) -> Iterator[Finding]:
    unopened = [
        domain.name
        for domain in running
        if domain.description is not None
        and any(channel.name in channel_names and channel.is_open is False for channel in domain.description.channels)
    ]
    if unopened:
        fix = "start the agent in the guest (systemctl start guestd-agent), or install it"
        yield warning("agents", f"no agent has opened the channel of: {_format_names(unopened)}", fix)


async def _check_directory(directory: Path, machines: Sequence[RegisteredMachine]) -> AsyncIterator[Finding]:
    machine_registry = MachineRegistry()
    machine_registry.replace(machines)
    found = await DirectoryDiscovery(directory, machine_registry).discover()
    if found is None:
        return
    if found.unknown:
        fix = "add the Machine of that id to the store, or remove the socket"
        yield warning(
            "machines", f"sockets of machines that the store does not know: {_format_names(found.unknown)}", fix
        )
    for finding in _check_sockets({str(key): channel.path for key, channel in found.channels.items()}):
        yield finding


def _check_sockets(paths: Mapping[str, Path]) -> Iterator[Finding]:
    """Check that guestd may connect to each socket; does not connect, because a channel serves one client only."""
    refused = [name for name, path in paths.items() if _is_socket(path) and not os.access(path, os.R_OK | os.W_OK)]
    gone = [name for name, path in paths.items() if not _is_socket(path)]
    if refused:
        fix = "add the group of QEMU's sockets (kvm or libvirt-qemu) to SupplementaryGroups= in the unit"
        yield fault("channels", f"sockets that this user may not open: {_format_names(refused)}", fix)
    if gone:
        fix = "restart the domain: QEMU creates the socket; guestd's user needs access to its directory"
        yield fault("channels", f"sockets that do not exist: {_format_names(gone)}", fix)
    if paths and not refused and not gone:
        yield ok("channels", f"{len(paths)} sockets exist and may be opened")


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def check_agents(metrics: str) -> Iterator[Finding]:
    """Report the dialects that agents speak, from the metrics of the running guestd."""
    dialects = Counter(_DIALECT.findall(metrics))
    if dialects:
        spoken = ", ".join(f"{count} speak {dialect}" for dialect, count in sorted(dialects.items()))
        yield ok("agents", spoken)


def _format_names(names: Sequence[str] | frozenset[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
