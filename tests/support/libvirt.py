"""libvirt's own test driver: domains that exist in this process only, and our driver connected to them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from guestd.hypervisor.connection import Counters, Hypervisor
from guestd.hypervisor.domains import Domain

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is not installed: ./dev builds it where it can")

AGENT_CHANNEL = """
<channel type='unix'><source mode='bind' path='/run/channels/{name}'/>
<target type='virtio' name='org.infinibay.agent'/></channel>
"""


def domain_xml(name: str, number: int, *, devices: str = "", vcpus: int = 2, memory_kib: int = 1048576) -> str:
    """A domain of the test driver, active when it is part of a file."""
    return f"""
    <domain type='test'>
      <name>{name}</name><uuid>{UUID(int=number)}</uuid>
      <memory unit='KiB'>{memory_kib}</memory><vcpu>{vcpus}</vcpu><os><type>hvm</type></os>
      <devices>{devices}</devices>
    </domain>
    """


def uri_of(file: Path, domains: Sequence[str]) -> str:
    """The URI of a libvirt that holds these domains; whoever opens it has a world of his own."""
    file.write_text(f"<node>{''.join(domains)}</node>")
    return f"test://{file}"


def silent() -> Counters:
    return Counters(lost=lambda: None, gave_up=lambda: None, looked=lambda _: None)


@asynccontextmanager
async def running(hypervisor: Hypervisor) -> AsyncIterator[Hypervisor]:
    """The driver while it is connected."""
    looked = hypervisor.subscribe()
    life = asyncio.create_task(hypervisor.run())
    try:
        async with asyncio.timeout(30):
            await looked.wait()
        yield hypervisor
    finally:
        life.cancel()
        await asyncio.wait([life])


async def seen(hypervisor: Hypervisor, name: str, what: Callable[[Domain], bool]) -> Domain:
    """Wait until the driver has seen a domain in some condition, by itself."""
    looked = hypervisor.subscribe()
    async with asyncio.timeout(30):
        while True:
            looked.clear()
            for domain in hypervisor.domains:
                if domain.name == name and what(domain):
                    return domain
            await looked.wait()


def own_connection(hypervisor: Hypervisor) -> Any:
    """The driver's connection, to do behind its back what an operator would do with virsh."""
    return hypervisor._connection
