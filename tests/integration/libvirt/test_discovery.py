"""Where channels are found: in a directory and in libvirt's domains, on real sockets."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from guestd.core.machines import MachineRegistry, RegisteredMachine
from guestd.hypervisor.domains import Domain, DomainChannel, DomainDescription
from guestd.ingest.discovery import DirectoryDiscovery, LibvirtDiscovery, list_socket_paths

AGENT, OLD = "org.infinibay.agent", "com.example.agent"
MACHINE = UUID(int=7)


def domain(name: str, *channels: tuple[str, Path | None], is_active: bool = True) -> Domain:
    ports = tuple(DomainChannel(port, str(path) if path else None, is_open=None) for port, path in channels)
    return Domain(uuid4(), name, "running", "booted", is_active, 0.0, DomainDescription(1, 1024, None, ports))


@pytest.fixture
def sockets(directory: Path) -> Iterator[Path]:
    """A directory that holds the sockets a and b."""
    with ExitStack() as open_:
        for name in ("a", "b"):
            open_.enter_context(socket.socket(socket.AF_UNIX)).bind(str(directory / name))
        yield directory


def machine_registry(**named: UUID) -> MachineRegistry:
    registry = MachineRegistry()
    registry.replace(RegisteredMachine(machine_id, name) for name, machine_id in named.items())
    return registry


def discover_from(
    domains: list[Domain] | None, registry: MachineRegistry, cache: Path = Path("/none/cache")
) -> tuple[dict[UUID, str], frozenset[str]] | None:
    """Discover through libvirt: the socket's name by machine, and the unknown domains."""
    discovery = LibvirtDiscovery(
        lambda: domains, asyncio.Event(), machine_registry=registry, channel_names=[AGENT, OLD], cache_file=cache
    )
    found = asyncio.run(discovery.discover())
    if found is None:
        return None
    return ({key: channel.path.name for key, channel in found.channels.items()}, found.unknown)


def test_the_first_configured_name_that_a_running_domain_has_is_its_channel() -> None:
    domains = [
        domain("both", (OLD, Path("/old")), (AGENT, Path("/new"))),
        domain("old", (OLD, Path("/o"))),
        domain("none", ("org.qemu.guest_agent.0", Path("/q"))),
        domain("not-chosen-yet", (AGENT, None)),
        domain("off", (AGENT, Path("/off")), is_active=False),
    ]
    assert dict(list_socket_paths(domains, [AGENT, OLD])) == {"both": Path("/new"), "old": Path("/o")}


def test_a_domains_channel_belongs_to_the_machine_of_that_internal_name(sockets: Path) -> None:
    assert discover_from([domain("vm", (AGENT, sockets / "a"))], machine_registry(vm=MACHINE)) == (
        {MACHINE: "a"},
        frozenset(),
    )


def test_a_domain_without_a_machine_is_reported_and_not_read(sockets: Path) -> None:
    domains = [domain("vm", (AGENT, sockets / "a")), domain("stray", (AGENT, sockets / "b"))]
    assert discover_from(domains, machine_registry(vm=MACHINE)) == ({MACHINE: "a"}, frozenset({"stray"}))


def test_a_missing_socket_is_no_channel(sockets: Path) -> None:
    assert discover_from([domain("vm", (AGENT, sockets / "gone"))], machine_registry(vm=MACHINE)) == ({}, frozenset())


def test_before_libvirt_and_the_store_have_answered_there_is_no_result(sockets: Path) -> None:
    assert discover_from(None, machine_registry(vm=MACHINE)) is None
    assert discover_from([domain("vm", (AGENT, sockets / "a"))], MachineRegistry()) is None


def test_the_next_guestd_uses_the_cache_without_libvirt_or_store(sockets: Path) -> None:
    cache, domains = sockets / "cache", [domain("vm", (AGENT, sockets / "a"))]
    assert discover_from(domains, machine_registry(vm=MACHINE), cache) == ({MACHINE: "a"}, frozenset())
    again = [domain("vm", (AGENT, sockets / "b")), domain("new", (AGENT, sockets / "a"))]
    assert discover_from(again, MachineRegistry(), cache) == ({MACHINE: "b"}, frozenset())
    assert discover_from(None, MachineRegistry(), cache) == ({MACHINE: "a"}, frozenset())
    assert discover_from(None, machine_registry(vm=MACHINE), cache) == ({MACHINE: "a"}, frozenset())
    assert discover_from(None, machine_registry(other=uuid4()), cache) == ({}, frozenset())


def test_a_running_domain_that_cannot_be_read_keeps_its_channel(sockets: Path) -> None:
    cache, registry = sockets / "cache", machine_registry(vm=MACHINE)
    read = domain("vm", (AGENT, sockets / "a"))
    unread = replace(read, description=None, problem="malformed")
    assert discover_from([unread], registry, cache) == ({}, frozenset())
    discover_from([read], registry, cache)
    for registered in (registry, MachineRegistry(), registry):
        assert discover_from([unread], registered, cache) == ({MACHINE: "a"}, frozenset())
        assert discover_from([replace(unread, is_active=False)], MachineRegistry(), cache) == ({}, frozenset())
    with socket.socket(socket.AF_UNIX) as other:
        (sockets / "b").rename(sockets / "old")
        other.bind(str(sockets / "b"))
        (sockets / "b").rename(sockets / "a")
    assert discover_from([unread], registry, cache) == ({}, frozenset())


def test_a_recreated_socket_is_not_taken_from_the_cache(sockets: Path) -> None:
    cache = sockets / "cache"
    discover_from([domain("vm", (AGENT, sockets / "a"))], machine_registry(vm=MACHINE), cache)
    with socket.socket(socket.AF_UNIX) as other:
        (sockets / "b").rename(sockets / "old")
        other.bind(str(sockets / "b"))
        (sockets / "b").rename(sockets / "a")
    assert discover_from(None, MachineRegistry(), cache) == ({}, frozenset())


def test_machines_that_are_not_collected_are_not_cached(sockets: Path) -> None:
    cache, domains = sockets / "cache", [domain("vm", (AGENT, sockets / "a"))]
    registry = MachineRegistry()
    registry.replace([RegisteredMachine(MACHINE, "vm", None, is_collected=False)])
    discover_from(domains, registry, cache)
    assert discover_from(domains, MachineRegistry(), cache) == ({}, frozenset())
    assert discover_from(None, MachineRegistry(), cache) == ({}, frozenset())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b'{"machines": 1}', b'{"machines": {}, "channels": {"a": []}}', b"[" * 100_000,
        b'{"machines": {"caf\xe9": "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"}, "channels": {}}',
    ],
)  # fmt: skip
def test_a_damaged_cache_is_ignored(sockets: Path, content: bytes) -> None:
    (sockets / "cache").write_bytes(content)
    assert discover_from(None, MachineRegistry(), sockets / "cache") is None


def test_a_cache_that_cannot_be_written_does_no_harm(sockets: Path) -> None:
    domains = [domain("vm", (AGENT, sockets / "a"))]
    assert discover_from(domains, machine_registry(vm=MACHINE), sockets / "none/cache") == ({MACHINE: "a"}, frozenset())


def test_a_cache_that_could_not_be_written_is_written_by_the_next_discovery(sockets: Path) -> None:
    domains, cache = [domain("vm", (AGENT, sockets / "a"))], sockets / "later" / "cache"
    discovery = LibvirtDiscovery(
        lambda: domains,
        asyncio.Event(),
        machine_registry=machine_registry(vm=MACHINE),
        channel_names=[AGENT],
        cache_file=cache,
    )
    with capture_logs() as logs:
        for _ in range(3):
            asyncio.run(discovery.discover())
    assert [entry["event"].partition(";")[0] for entry in logs] == ["cannot save the channel cache"]
    cache.parent.mkdir()
    asyncio.run(discovery.discover())
    assert discover_from(None, MachineRegistry(), cache) == ({MACHINE: "a"}, frozenset())


def test_a_recreated_socket_is_another_channel(directory: Path) -> None:
    path = directory / f"{MACHINE}.socket"
    discovery = DirectoryDiscovery(directory, machine_registry(vm=MACHINE))

    def found() -> object:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            domains = asyncio.run(discovery.discover())
            path.unlink()
        assert domains is not None
        return domains.channels[MACHINE]

    assert found() != found()


def test_an_unreadable_directory_gives_no_result(directory: Path) -> None:
    (directory / "file").touch()
    assert asyncio.run(DirectoryDiscovery(directory / "file", MachineRegistry()).discover()) is None
    absent = asyncio.run(DirectoryDiscovery(directory / "absent", MachineRegistry()).discover())
    assert absent is not None
    assert absent.channels == {}
