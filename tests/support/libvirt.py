"""libvirt's own test driver: domains that exist in this process only, and our driver connected to them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from guestd.hypervisor.domains import Domain
from guestd.hypervisor.driver import Hypervisor, Target

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
    """The URI of a test driver with these domains; each connection has its own copy."""
    file.write_text(f"<node>{''.join(domains)}</node>")
    return f"test://{file}"


@asynccontextmanager
async def running(hypervisor: Hypervisor) -> AsyncIterator[Hypervisor]:
    """The driver while it is connected."""
    observed = hypervisor.subscribe()
    task = asyncio.create_task(hypervisor.run())
    try:
        async with asyncio.timeout(30):
            await observed.wait()
        yield hypervisor
    finally:
        task.cancel()
        await asyncio.wait([task])


async def wait_for_domain(hypervisor: Hypervisor, name: str, condition: Callable[[Domain], bool]) -> Domain:
    """Wait until the driver has observed a domain that meets the condition, by itself."""
    observed = hypervisor.subscribe()
    async with asyncio.timeout(30):
        while True:
            observed.clear()
            for domain in hypervisor.domains:
                if domain.name == name and condition(domain):
                    return domain
            await observed.wait()


def target_of(domain: Domain) -> Target:
    """A domain as the target of an action."""
    return Target(domain.uuid, domain.name, domain.state, domain.boot)


def own_connection(hypervisor: Hypervisor) -> Any:
    """The driver's connection, for changes that an operator would make with virsh."""
    return hypervisor._connection
