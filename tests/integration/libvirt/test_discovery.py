"""Where channels are found: in a directory and in libvirt's domains, on real sockets."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID, uuid4

import pytest

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
    known = MachineRegistry()
    known.replace(RegisteredMachine(machine_id, name) for name, machine_id in named.items())
    return known


def look(
    seen: list[Domain] | None, known: MachineRegistry, memory: Path = Path("/none/memory")
) -> tuple[dict[UUID, str], frozenset[str]] | None:
    """What is found: the socket's name by machine, and who is unknown."""
    place = LibvirtDiscovery(
        lambda: seen, asyncio.Event(), machine_registry=known, channel_names=[AGENT, OLD], cache_file=memory
    )
    found = asyncio.run(place.discover())
    if found is None:
        return None
    return ({key: channel.path.name for key, channel in found.channels.items()}, found.unknown)


def test_the_first_of_the_names_that_a_running_domain_has_is_its_channel() -> None:
    seen = [
        domain("both", (OLD, Path("/old")), (AGENT, Path("/new"))),
        domain("old", (OLD, Path("/o"))),
        domain("none", ("org.qemu.guest_agent.0", Path("/q"))),
        domain("not-chosen-yet", (AGENT, None)),
        domain("off", (AGENT, Path("/off")), is_active=False),
    ]
    assert dict(list_socket_paths(seen, [AGENT, OLD])) == {"both": Path("/new"), "old": Path("/o")}


def test_a_domains_channel_belongs_to_the_machine_of_that_internal_name(sockets: Path) -> None:
    assert look([domain("vm", (AGENT, sockets / "a"))], machine_registry(vm=MACHINE)) == ({MACHINE: "a"}, frozenset())


def test_a_domain_without_a_machine_is_reported_and_not_read(sockets: Path) -> None:
    seen = [domain("vm", (AGENT, sockets / "a")), domain("stray", (AGENT, sockets / "b"))]
    assert look(seen, machine_registry(vm=MACHINE)) == ({MACHINE: "a"}, frozenset({"stray"}))


def test_a_socket_that_is_not_there_is_no_channel(sockets: Path) -> None:
    assert look([domain("vm", (AGENT, sockets / "gone"))], machine_registry(vm=MACHINE)) == ({}, frozenset())


def test_before_libvirt_or_the_store_has_answered_nothing_can_be_told(sockets: Path) -> None:
    assert look(None, machine_registry(vm=MACHINE)) is None
    assert look([domain("vm", (AGENT, sockets / "a"))], MachineRegistry()) is None


def test_what_a_look_has_shown_is_known_to_the_next_guestd_without_libvirt_or_store(sockets: Path) -> None:
    memory, seen = sockets / "memory", [domain("vm", (AGENT, sockets / "a"))]
    assert look(seen, machine_registry(vm=MACHINE), memory) == ({MACHINE: "a"}, frozenset())
    again = [domain("vm", (AGENT, sockets / "b")), domain("new", (AGENT, sockets / "a"))]
    assert look(again, MachineRegistry(), memory) == ({MACHINE: "b"}, frozenset())
    assert look(None, MachineRegistry(), memory) == ({MACHINE: "a"}, frozenset())
    assert look(None, machine_registry(vm=MACHINE), memory) == ({MACHINE: "a"}, frozenset())
    assert look(None, machine_registry(other=uuid4()), memory) == ({}, frozenset())


def test_a_remembered_socket_that_was_made_anew_is_nobodys_until_libvirt_names_it(sockets: Path) -> None:
    memory = sockets / "memory"
    look([domain("vm", (AGENT, sockets / "a"))], machine_registry(vm=MACHINE), memory)
    with socket.socket(socket.AF_UNIX) as other:
        (sockets / "b").rename(sockets / "old")
        other.bind(str(sockets / "b"))
        (sockets / "b").rename(sockets / "a")
    assert look(None, MachineRegistry(), memory) == ({}, frozenset())


def test_machines_whose_samples_are_not_wanted_are_not_remembered_by_name(sockets: Path) -> None:
    memory, seen = sockets / "memory", [domain("vm", (AGENT, sockets / "a"))]
    known = MachineRegistry()
    known.replace([RegisteredMachine(MACHINE, "vm", None, is_collected=False)])
    look(seen, known, memory)
    assert look(seen, MachineRegistry(), memory) == ({}, frozenset())
    assert look(None, MachineRegistry(), memory) == ({}, frozenset())


@pytest.mark.parametrize("content", [b"", b"{", b'{"machines": 1}', b'{"machines": {}, "channels": {"a": []}}'])
def test_a_memory_that_cannot_be_read_is_none(sockets: Path, content: bytes) -> None:
    (sockets / "memory").write_bytes(content)
    assert look(None, MachineRegistry(), sockets / "memory") is None


def test_a_memory_that_cannot_be_written_costs_nothing(sockets: Path) -> None:
    seen = [domain("vm", (AGENT, sockets / "a"))]
    assert look(seen, machine_registry(vm=MACHINE), sockets / "none/memory") == ({MACHINE: "a"}, frozenset())


def test_a_socket_made_anew_is_another_channel(directory: Path) -> None:
    path = directory / f"{MACHINE}.socket"
    place = DirectoryDiscovery(directory, machine_registry(vm=MACHINE))

    def found() -> object:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            seen = asyncio.run(place.discover())
            path.unlink()
        assert seen is not None
        return seen.channels[MACHINE]

    assert found() != found()


def test_a_directory_that_cannot_be_read_tells_nothing(directory: Path) -> None:
    (directory / "file").touch()
    assert asyncio.run(DirectoryDiscovery(directory / "file", MachineRegistry()).discover()) is None
    absent = asyncio.run(DirectoryDiscovery(directory / "absent", MachineRegistry()).discover())
    assert absent is not None
    assert absent.channels == {}
